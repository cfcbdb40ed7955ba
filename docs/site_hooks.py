"""What `mkdocs build` does besides rendering docs/: equations as MathML, and the measured claims of data/."""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
MEASURED = "data/variance"
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the page of the measured claims, with its pictures, to the site."""
    for path in sorted((ROOT / MEASURED).iterdir()):
        if path.suffix in (".md", ".png", ".svg"):
            files.append(File.generated(config, f"{MEASURED}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to data/ at the pages that `on_files` adds; on GitHub they point at the files."""
    return markdown.replace(f"](../{MEASURED}/", f"]({MEASURED}/")


def on_page_content(content: str, **_: Any) -> str:
    """Render equations as MathML, which browsers show without scripts or downloads."""
    return EQUATION.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return convert(html.unescape(found[2]).strip(), display=display)
