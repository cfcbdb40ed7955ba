"""Style and file formats (PNG and SVG) of all plots. Plots need matplotlib, an optional dependency.

The colors are those of Okabe and Ito (2008), which color-blind people can distinguish. Each color is used
with one dash pattern and one marker, so that plots can also be read in grayscale.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
# with a fixed salt, plots of equal data are identical files
RC_PARAMS = {"svg.hashsalt": "llm_reinforce", "font.size": 9.0}


@dataclass(frozen=True, slots=True)
class Style:
    """Color, dash pattern and marker of a line."""

    color: str
    dashes: Any
    marker: str


STYLES = (
    Style("#0072B2", "-", "o"),  # blue
    Style("#D55E00", (0, (5, 1.5)), "s"),  # vermilion
    Style("#009E73", (0, (1, 1)), "^"),  # bluish green
    Style("#CC79A7", (0, (4, 1, 1, 1)), "D"),  # reddish purple
    Style("#000000", (0, (7, 2, 1, 2, 1, 2)), "v"),
    Style("#E69F00", (0, (2, 1)), "P"),  # orange
)


@contextmanager
def plotting() -> Iterator[None]:
    """Apply the style that all plots share, within a `with` block.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    import matplotlib

    with matplotlib.rc_context(RC_PARAMS):
        yield


def write_figure(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Write a figure to `name.png` and `name.svg`, each atomically. Return the paths of the two files."""
    files = []
    for suffix in ("png", "svg"):
        partial, file = folder / f"{name}.partial.{suffix}", folder / f"{name}.{suffix}"
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(partial, dpi=DPI, metadata=metadata)
        files.append(partial.replace(file))
    return files
