"""ASDiv's published XML file, read without trust in it."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from llm_reinforce.errors import InputError
from llm_reinforce.problems.sources import Row, read_rows, read_text


def asdiv_rows(path: Path) -> Iterator[Row]:
    """A row for each `<Problem>`: its attributes and its elements' text by their names; or rows of JSON.

    Entities can only be declared in a DTD, and a file with one is refused; so nothing expands, and nothing
    else is read.

    Source: Miao et al. 2020; github.com/chaochun/nlu-asdiv-dataset.

    Raises:
        InputError: it is not there, no such XML, or has a DTD.
    """
    text = read_text(path)
    if not text.lstrip().startswith("<"):
        yield from read_rows(path)
        return
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: XML with a DTD is not read; ASDiv has none")
    try:
        root = ElementTree.fromstring(text.lstrip())  # noqa: S314 - no DTD, so no entities
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: broken XML: {error}") from error
    number = 0
    for number, problem in enumerate(root.iter("Problem"), 1):
        values: dict[str, object] = dict(problem.attrib)
        values |= {child.tag: "".join(child.itertext()).strip() for child in problem}
        yield Row(f"{path}, problem {number}", f"{path.stem}-{number}", values)
    if number == 0:
        raise InputError(f"{path}: no <Problem> in it; ASDiv's file has one for each")
