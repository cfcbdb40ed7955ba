"""`llm-reinforce recipes list|show|copy|validate|keys`: list, show, copy and check recipes, and list keys."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import DebugOption, reported_failures
from llm_reinforce.cli.help_texts import App
from llm_reinforce.console.messages import print_error, terminal_console
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.config.key_reference import SectionEntry

recipes = App(help="List, show, copy and check recipes, and list the keys of a recipe.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Name of a built-in recipe; see `recipes list`.")]


@recipes.command("list")
def list_recipes() -> None:
    """List the built-in recipes with their purposes."""
    from llm_reinforce.config import builtin_recipes

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
    """Copy a built-in recipe and its files, so that you can change them. No existing file is overwritten.

    The measured results at the top of the recipe are not copied.
    """
    with reported_failures("the copy", debug=debug):
        original = _find(name)
        text = without_results(original.read_text(encoding="utf-8"))
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
            raise InputError(f"{target}: can't be written ({error.strerror}); give another path") from None
        for named in sorted(original.parent.glob("*.*")):  # copy files whose names occur in the recipe
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
        from llm_reinforce.config import load_config

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


@recipes.command()
def keys(
    section: Annotated[
        str | None, typer.Argument(help="Section, such as training or problems.train. Default: all sections.")
    ] = None,
    as_json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print a JSON schema of recipes, which editors can use.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """List the keys of a recipe with their defaults, allowed values and meaning."""
    with reported_failures(debug=debug):
        if as_json_schema:
            from llm_reinforce.config import Config

            typer.echo(json.dumps(Config.model_json_schema(), indent=2))
            return
        console = terminal_console()
        for entry in _find_sections(section):
            console.print(Text("\n" + (" and ".join(filter(None, entry.paths)) or "top level"), style="bold"))
            console.print(Text(entry.summary, style="dim"))
            for key in entry.keys:
                default = "required" if key.default == "required" else f"default: {key.default}"
                facts = f"{key.values}; {default}".replace("`", "")
                console.print(Text.assemble(f"  {key.name}  ", (facts, "cyan")), soft_wrap=False)
                console.print(Padding(Text(key.description.replace("`", "")), (0, 0, 0, 6)))


def _find_sections(name: str | None) -> "list[SectionEntry]":
    from llm_reinforce.config import Config
    from llm_reinforce.config.key_reference import key_reference
    from llm_reinforce.errors import nearest

    entries = key_reference(Config)
    if name is None:
        return entries
    known = {path: entry for entry in entries for path in entry.paths if path}
    known |= {path.removesuffix(".N"): entry for path, entry in known.items()}
    if name not in known:
        hint = nearest(name, known) or f"; the sections are {', '.join(sorted(known))}"
        raise InputError(f"a recipe has no section {name!r}{hint}")
    return [known[name]]


def without_results(text: str) -> str:
    """Remove the paragraph that starts with "# Measured:" from the opening comment of a recipe."""
    head, separator, settings = text.partition("\n\n")
    lines = head.split("\n")
    first = next((at for at, line in enumerate(lines) if line.startswith("# Measured:")), len(lines))
    while first and lines[first - 1] == "#":
        first -= 1
    kept = [line for at, line in enumerate(lines) if at < first or not line.startswith("#")]
    return "\n".join(kept) + separator + settings


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
    from llm_reinforce.config import builtin_recipes
    from llm_reinforce.errors import nearest

    built_in = builtin_recipes()
    if name not in built_in:
        hint = nearest(name, built_in) or f"; choose one of: {', '.join(built_in) or 'none'}"
        raise InputError(f"there is no built-in recipe {name!r}{hint}")
    return built_in[name]
