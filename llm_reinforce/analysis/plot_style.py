"""How the laboratory draws: by matplotlib (an extra), as PNG and SVG.

The colours are Okabe and Ito's (2008), which colour-blind people tell apart; each has a dash pattern and a
marker of its own, so that a print in grey can be read too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
SALT = {"svg.hashsalt": "llm_reinforce", "font.size": 9.0}  # the same numbers make the same file


@dataclass(frozen=True, slots=True)
class Style:
    """How the lines of one kind look."""

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
    """The settings of all figures.

    Raises:
        ModuleNotFoundError: matplotlib isn't installed.
    """
    import matplotlib

    with matplotlib.rc_context(SALT):
        yield


def write_figure(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Write it as `name.png` and `name.svg`, whole or not at all; return the two files."""
    files = []
    for suffix in ("png", "svg"):
        partial, file = folder / f"{name}.partial.{suffix}", folder / f"{name}.{suffix}"
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(partial, dpi=DPI, metadata=metadata)
        files.append(partial.replace(file))
    return files
