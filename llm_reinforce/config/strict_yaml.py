"""YAML read strictly into a pydantic model: every key keeps its place, and all that is wrong is said at once.

A document is a plain tree of mappings, lists and scalars. Its scalars are YAML 1.2's: `1e-5` is a number,
`no` and `on` are text. Tags, anchors, aliases and repeated keys are refused, so nothing in it can run.
To read one: `parse_document`, then `apply_override` for each override, then `validate`.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llm_reinforce.errors import InputError

KeyPath = tuple[str | int, ...]  # where a value stands in a document: ("rewards", 0, "weight")
Schema = Mapping[str, Any]  # a node of a model's JSON schema
Model = TypeVar("Model", bound=BaseModel)

CORE_SCALARS = (  # what unquoted text is a value other than text: kind, pattern, first characters
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?[0-9]+[eE][-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
)


class StrictLoader(yaml.SafeLoader):
    """Composes a plain tree: YAML 1.2's scalars; no tags, no anchors, no aliases."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - none of YAML 1.1's; the table above comes in below

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            unwanted = "anchors (&) and aliases (*) are not read: write the value out, or quote it"
        elif event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            unwanted = f"the tag {tag} is not read: a recipe holds text, numbers, lists and sections only"
        else:
            return super().compose_node(parent, index)
        raise yaml.MarkedYAMLError(problem=unwanted, problem_mark=event.start_mark)


class StrictDumper(yaml.SafeDumper):
    """Quotes whatever text StrictLoader, or an older YAML reader, would take for something else."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        # a line may end there, for YAML: between double quotes they are written as escapes
        style = '"' if set(text) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


StrictDumper.add_representer(str, StrictDumper.represent_str)


for _kind, _pattern, _first in CORE_SCALARS:
    for _class in (StrictLoader, StrictDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


@dataclass(frozen=True, order=True)
class Place:
    """Where the user wrote something: a line of the file (0: no line of its own) or a `--set` override."""

    override: str = ""
    line: int = 0

    def shown(self, name: str) -> str:
        return f"--set {self.override}" if self.override else f"{name}:{self.line}" if self.line else name


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it was written, the key, and a sentence."""

    place: Place
    path: KeyPath
    message: str

    def shown(self, name: str) -> str:
        return ": ".join(part for part in (self.place.shown(name), dotted(self.path), self.message) if part)


@dataclass
class Document:
    """A file as read so far: its values, the place of every key and item, and what was wrong in it."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place_of(self, path: KeyPath) -> Place:
        """The place of a key, or else of the nearest section around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place())

    def raise_problems(self) -> None:
        """Raise one InputError with a line a problem, in the file's order, overrides last."""
        if self.problems:
            in_order = sorted(self.problems, key=lambda problem: problem.place)
            raise InputError("\n".join(dict.fromkeys(problem.shown(self.name) for problem in in_order)))


def parse_document(text: str, name: str) -> Document:
    """Read the text of a file called `name`. A syntax error raises at once; all else is collected."""
    document = Document(name)
    try:
        data = _read_value(text, document)
    except yaml.YAMLError as error:
        line, message = _syntax_error(error)
        raise InputError(Problem(Place(line=line), (), message).shown(name)) from None
    if not isinstance(data, dict):
        wrong = (
            "the file is empty" if data is None else f"should be sections of keys, not {shown_value(data)}"
        )
        raise InputError(f"{name}: {wrong}")
    document.data = data
    return document


def _read_value(text: str, document: Document) -> Any:
    """The value that a YAML text holds; the places of its keys go into the document."""
    loader = StrictLoader(text)
    try:
        root = loader.get_single_node()
        return None if root is None else _value_of(root, (), loader, document)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _value_of(node: yaml.Node, path: KeyPath, loader: StrictLoader, document: Document) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping_of(node, path, loader, document)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.places[(*path, index)] = Place(line=item.start_mark.line + 1)
        return [_value_of(item, (*path, at), loader, document) for at, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except ValueError as error:  # of an integer of thousands of digits Python makes none
        raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def _mapping_of(
    node: yaml.MappingNode, path: KeyPath, loader: StrictLoader, document: Document
) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = Place(line=key_node.start_mark.line + 1)
        key = _value_of(key_node, path, loader, Document(document.name))
        if not isinstance(key, str):
            message = f"a key should be text, not {shown_value(key)} (quote it)"
            document.problems.append(Problem(place, path, message))
        elif key in mapping:
            message = f"given twice, first on line {document.places[(*path, key)].line}"
            document.problems.append(Problem(place, (*path, key), message))
        else:
            document.places[(*path, key)] = place
            mapping[key] = _value_of(value_node, (*path, key), loader, document)
    return mapping


def _syntax_error(error: yaml.YAMLError) -> tuple[int, str]:
    """The line (0 if unknown) and the sentence of a YAML error."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return 0, f"this YAML can't be read: {' '.join(str(error).split())}"
    mark = error.problem_mark or error.context_mark
    because = ", ".join(filter(None, (error.context, error.problem)))
    return (mark.line + 1 if mark else 0), f"this YAML can't be read: {because}"


def apply_override(document: Document, override: str) -> None:
    """Put `section.key=value` into a document: the value is YAML, an item of a list goes by its index."""
    place = Place(override=override)
    try:
        _apply_at(place, document, override)
    except InputError as error:
        document.problems.append(Problem(place, (), str(error)))


def _apply_at(place: Place, document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not all((*sections, last)):
        raise InputError("should read section.key=value")
    read = Document(document.name)
    try:
        value = _read_value(text, read)
    except yaml.YAMLError as error:
        raise InputError(f"{_syntax_error(error)[1]} (quote a value to make it text)") from None
    container: Any = document.data
    path: KeyPath = ()
    for name in sections:
        path = (*path, at := _key_in(container, name, path))
        if isinstance(container, dict) and container.get(at) is None:
            container[at] = {}
            document.places.setdefault(path, place)
        container = container[at]
    path = (*path, _key_in(container, last, path))
    container[path[-1]] = value
    for old in [old for old in document.places if old[: len(path)] == path]:
        del document.places[old]
    document.places |= {path + below: place for below in ((), *read.places)}
    document.problems += [Problem(place, path + below.path, below.message) for below in read.problems]


def _key_in(container: Any, name: str, path: KeyPath) -> str | int:
    if isinstance(container, dict):
        return name
    if not isinstance(container, list):
        raise InputError(f"{dotted(path)} is {shown_value(container)}, which has no key {name!r}")
    if not (name.isdecimal() and int(name) < len(container)):
        raise InputError(f"{dotted(path)} is {shown_value(container)}, counted from 0; it has no {name!r}")
    return int(name)


def validate(model: type[Model], document: Document) -> Model:
    """The document as a model, or one InputError with all that is wrong in it."""
    try:
        validated = model.model_validate(document.data)
    except ValidationError as error:
        for path, message in complaints(error, model):
            document.problems.append(Problem(document.place_of(path), path, message))
    document.raise_problems()
    return validated


def complaints(error: ValidationError, model: type[BaseModel]) -> list[tuple[KeyPath, str]]:
    """What is wrong, in plain sentences: the path of each value and what to say of it."""
    schema = model.model_json_schema()
    worded = [_worded(details, schema) for details in error.errors()]
    inside = {path[:depth] for path, _ in worded for depth in range(len(path))}
    # an error inside a value says more than one about the whole
    return [(path, message) for path, message in worded if path not in inside]


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML that reads back as the same data, keys in the order given."""
    return yaml.dump(data, Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=100)


def _worded(error: ErrorDetails, schema: Schema) -> tuple[KeyPath, str]:
    """The path of a pydantic error and a plain sentence about it; what was due is read off the schema."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    path, node = _follow(schema, error["loc"])
    if kind == "extra_forbidden":
        return error["loc"], _unknown_key(error["loc"], schema)
    if kind == "missing":
        return path, "missing, and it has no default"
    if kind == "value_error":
        return path, str(context["error"])
    if kind == "conflict":
        return path + context["path"], error["msg"]
    due = _expectation(node, schema)
    if not due:
        return path, error["msg"]
    hint = nearest(value, _choices(node)) if isinstance(value, str) else ""
    return path, f"should be {due}, not {shown_value(value)}{hint}"


def _unknown_key(path: KeyPath, schema: Schema) -> str:
    """What to say of a key that nobody reads: the nearest key beside it, or where such a key belongs."""
    section = _follow(schema, path[:-1])[1]
    siblings = [str(known[0]) for known in _all_keys(section, schema) if len(known) == 1]
    of_that_name = [known for known in _all_keys(schema, schema) if known[-1] == path[-1]]
    elsewhere = [dotted(known) for known in sorted(of_that_name, key=len)]  # the outermost first
    if hint := nearest(str(path[-1]), siblings) or nearest("".join(elsewhere[:1]), elsewhere):
        return f"unknown key{hint}"
    return f"unknown key; the keys here are {', '.join(siblings)}"


def _branches(node: Schema, root: Schema) -> list[Schema]:
    """The alternatives of a schema node, references followed; a node without any is its own."""
    branches = node.get("anyOf", [node])
    return [root["$defs"][b["$ref"].rsplit("/", 1)[-1]] if "$ref" in b else b for b in branches]


def _child(node: Schema, part: str | int, root: Schema) -> Any:
    """The schema of a section's key or a list's item; None where there is no such thing."""
    for branch in _branches(node, root):
        items = [branch["items"]] if "items" in branch else branch.get("prefixItems", [])
        if isinstance(part, int) and items:
            return items[0]
        if part in branch.get("properties", {}):
            return branch["properties"][part]
    return None


def _follow(root: Schema, location: KeyPath) -> tuple[KeyPath, Schema]:
    """Walk a schema along a pydantic location, past the names of union members that pydantic puts in it."""
    node = root
    path: KeyPath = ()
    for part in location:
        child = _child(node, part, root)
        if child is not None:
            node, path = child, (*path, part)
    return path, node


def _all_keys(node: Schema, root: Schema, path: KeyPath = ()) -> Iterator[KeyPath]:
    for branch in _branches(node, root):
        for key, child in branch.get("properties", {}).items():
            yield (*path, key)
            yield from _all_keys(child, root, (*path, key))


NUMBERS = {"integer": "a whole number", "number": "a number"}
OTHERS = {"string": "text", "boolean": "true or false", "null": "null", "object": "a section of keys"}
BOUNDS = {"minimum": "of at least", "exclusiveMinimum": "above"}
BOUNDS |= {"maximum": "at most", "exclusiveMaximum": "below"}


def _expectation(node: Schema, root: Schema) -> str:
    """What a schema node takes, in words: `a whole number of at least 1 or null`; "" if that is unknown."""
    return " or ".join(filter(None, (_expectation_of_one(branch) for branch in _branches(node, root))))


def _expectation_of_one(branch: Schema) -> str:
    kind = branch.get("type", "")
    if choices := [repr(choice) for choice in _choices(branch)]:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if kind in NUMBERS:
        bounds = [f"{words} {branch[bound]:g}" for bound, words in BOUNDS.items() if bound in branch]
        return f"{NUMBERS[kind]} {' and '.join(bounds)}".strip()
    if kind == "array":
        least, most = branch.get("minItems", 0), branch.get("maxItems")
        return f"a list of {'' if least == most else 'at least '}{least}" if least else "a list"
    if kind == "string" and branch.get("minLength"):
        return "text of at least one character"
    return OTHERS.get(kind, "")


def _choices(node: Schema) -> list[str]:
    choices = [*node.get("enum", []), *([node["const"]] if "const" in node else [])]
    return choices + [choice for branch in node.get("anyOf", []) for choice in _choices(branch)]


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a choice is near to the word, else nothing."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def shown_value(value: Any) -> str:
    """A value the way that a reader of YAML knows it."""
    if isinstance(value, dict):
        return "a section of keys"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else repr(value[:57] + "...")
    return "null" if value is None else str(value).lower()
