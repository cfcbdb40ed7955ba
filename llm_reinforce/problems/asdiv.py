"""Safe reader of the XML file in which ASDiv is published."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from llm_reinforce.errors import InputError
from llm_reinforce.problems.data_files import Row, read_rows, read_text


def asdiv_rows(path: Path) -> Iterator[Row]:
    """Yield a row for each element `<Problem>` of the file.

    A row maps the name of each attribute of the element to its value, and the name of each child element to
    the text of this child. A file that is not XML is read as JSON.

    A file with a document type definition (DTD) is rejected. Entities can only be declared in a DTD, so an
    accepted file cannot use entities to exhaust the memory or to include other files.

    Source: Miao et al. 2020; github.com/chaochun/nlu-asdiv-dataset.

    Raises:
        InputError: if the file does not exist, is not valid, contains no element `<Problem>`, or has a DTD.
    """
    text = read_text(path)
    if not text.lstrip().startswith("<"):
        yield from read_rows(path)
        return
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: XML with a DTD is not allowed; use the original ASDiv file")
    try:
        root = ElementTree.fromstring(text.lstrip())  # noqa: S314 - no DTD, so no entities
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: invalid XML ({error}); use the original ASDiv file") from error
    number = 0
    for number, problem in enumerate(root.iter("Problem"), 1):
        values: dict[str, object] = dict(problem.attrib)
        values |= {child.tag: "".join(child.itertext()).strip() for child in problem}
        yield Row(f"{path}, problem {number}", f"{path.stem}-{number}", values)
    if number == 0:
        raise InputError(f"{path}: contains no <Problem> element; use the original ASDiv file")
