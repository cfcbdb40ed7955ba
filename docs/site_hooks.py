"""Additions to the site that `mkdocs build` makes: equations, colors of code, and the claims of data/."""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).parents[1]
MEASURED = "data/variance"
STYLES = {"light": "friendly", "dark": "github-dark"}
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the page of the measured claims with its pictures, and the colors of code."""
    colors = [
        HtmlFormatter(style=style, nobackground=True).get_style_defs(f'[data-bs-theme="{theme}"] .highlight')
        for theme, style in STYLES.items()
    ]
    files.append(File.generated(config, "pygments.css", content="\n".join(colors)))
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
    equation = html.unescape(found[2]).strip()
    if found[1] == "span":
        return convert(equation)
    return f"<p>{convert(equation, display='block')}</p>"
