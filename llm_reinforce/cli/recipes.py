"""`llm-reinforce recipes list|show|copy|validate`: list, show, copy and check recipes."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import DebugOption, reported_failures
from llm_reinforce.config import builtin_recipes, load_config
from llm_reinforce.config.strict_yaml import nearest
from llm_reinforce.console.messages import print_error, terminal_console
from llm_reinforce.errors import InputError

recipes = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Name of a built-in recipe, see `recipes list`.")]


@recipes.command("list")
def list_recipes() -> None:
    """List the built-in recipes and the purpose of each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    for name, path in builtin_recipes().items():
        table.add_row(name, Text(first_sentence(path.read_text(encoding="utf-8"))))
    console = terminal_console()
    console.print(table if table.row_count else "there are no built-in recipes in this installation")


@recipes.command()
def show(name: NameArgument, debug: DebugOption = False) -> None:
    """Print a built-in recipe."""
    with reported_failures(debug=debug):
        typer.echo(_find(name).read_text(encoding="utf-8"), nl=False)


@recipes.command()
def copy(
    name: NameArgument,
    file: Annotated[
        Path | None, typer.Argument(help="File or directory to copy to. Default: NAME.yaml.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Copy a built-in recipe and its files, so that you can change them. No file is overwritten."""
    with reported_failures("the copy", debug=debug):
        original = _find(name)
        text = original.read_text(encoding="utf-8")
        target = file or Path(f"{name}.yaml")
        target = target / f"{name}.yaml" if target.is_dir() else target
        try:
            with target.open("x", encoding="utf-8") as opened:
                opened.write(text)
        except FileExistsError:
            raise InputError(f"{target}: exists and is not overwritten; give another name") from None
        except FileNotFoundError:
            raise InputError(f"{target}: the directory {target.parent} does not exist; create it") from None
        except OSError as error:
            raise InputError(f"{target}: can't be written: {error.strerror}") from None
        for named in sorted(original.parent.glob("*.*")):  # files that the recipe names
            if named.suffix != ".yaml" and named.name in text and not (target.parent / named.name).exists():
                shutil.copyfile(named, target.parent / named.name)
                typer.echo(f"wrote {target.parent / named.name}")
        typer.echo(f"wrote {target}; run it with: llm-reinforce train {shlex.quote(str(target))}")


@recipes.command()
def validate(
    files: Annotated[
        list[str], typer.Argument(metavar="RECIPE…", help="Recipe files, or names of built-in recipes.")
    ],
    debug: DebugOption = False,
) -> None:
    """Check recipes and report all errors in them, without loading a model."""
    with reported_failures(debug=debug):
        num_invalid = 0
        for file in files:
            try:
                load_config(file)
            except InputError as error:
                num_invalid += 1
                print_error(str(error))
            else:
                typer.echo(f"{file}: valid recipe")
        if num_invalid:
            raise typer.Exit(2)


def first_sentence(text: str) -> str:
    """Return the first sentence of the comment at the beginning of a file."""
    lines: list[str] = []
    for line in text.splitlines():
        words = line.lstrip("#").strip()
        if not line.startswith("#") or (lines and not words):
            break
        if words:
            lines.append(words)
    return re.split(r"(?<=[.!?])\s", " ".join(lines), maxsplit=1)[0]


def _find(name: str) -> Path:
    built_in = builtin_recipes()
    if name not in built_in:
        hint = nearest(name, built_in) or f"; choose one of: {', '.join(built_in) or 'none'}"
        raise InputError(f"there is no built-in recipe {name!r}{hint}")
    return built_in[name]
