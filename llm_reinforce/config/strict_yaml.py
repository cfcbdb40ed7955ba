"""Strict YAML for pydantic models. All errors in a file are reported at once, each with its line.

A document consists of mappings, lists and scalars. Scalars follow YAML 1.2: `1e-5` is a number, and `no` and
`on` are text. Tags are rejected, because a document with tags could execute code. Anchors, aliases and
repeated keys are also rejected. To read a document, call `parse_document`, then `apply_override` for each
override of the form `section.key=value`, then `validate`.
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llm_reinforce.errors import InputError, closest, nearest

KeyPath = tuple[str | int, ...]  # location of a value in a document, such as ("rewards", 0, "weight")
Schema = Mapping[str, Any]  # a node of a model's JSON schema
Model = TypeVar("Model", bound=BaseModel)

CORE_SCALARS = (  # unquoted scalars that are not text: kind, pattern, possible first characters
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?[0-9]+[eE][-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
)


class StrictLoader(yaml.SafeLoader):
    """A YAML loader that reads scalars as in YAML 1.2, and rejects tags, anchors and aliases."""

    # without the resolvers of YAML 1.1; CORE_SCALARS are added below
    yaml_implicit_resolvers = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            unwanted = "anchors (&) and aliases (*) are not allowed; write the value out, or quote it"
        elif event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            unwanted = f"the tag {tag} is not allowed; use only text, numbers, lists and sections"
        else:
            return super().compose_node(parent, index)
        raise yaml.MarkedYAMLError(problem=unwanted, problem_mark=event.start_mark)


class StrictDumper(yaml.SafeDumper):
    """A YAML dumper that quotes text if StrictLoader or a YAML 1.1 reader would read it as another type."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        # YAML treats these characters as line breaks; in double quotes, they are written as escape sequences
        style = '"' if set(text) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


StrictDumper.add_representer(str, StrictDumper.represent_str)


for _kind, _pattern, _first in CORE_SCALARS:
    for _class in (StrictLoader, StrictDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


@dataclass(frozen=True, order=True)
class Place:
    """Source of a value: a line of the file (0 if unknown) or a `--set` override."""

    override: str = ""
    line: int = 0

    def shown(self, name: str) -> str:
        return f"--set {self.override}" if self.override else f"{name}:{self.line}" if self.line else name


@dataclass(frozen=True)
class Problem:
    """An error in a document, with its place, its key and a message."""

    place: Place
    path: KeyPath
    message: str

    def shown(self, name: str) -> str:
        return ": ".join(part for part in (self.place.shown(name), dotted(self.path), self.message) if part)


@dataclass
class Document:
    """A file that is being read.

    Attributes:
        name: name of the file.
        data: values of the file, with overrides applied.
        places: for each key and list item, the line of the file or the override that set its value.
        problems: errors found so far.
        changed: paths of the keys that the user has changed, by overrides or in Python.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    changed: list[KeyPath] = field(default_factory=list)

    def place_of(self, path: KeyPath) -> Place:
        """Return the source of a key's value: its line in the file, or the override that set it.

        If the key is not in the document, return the source of the innermost existing section that would
        contain the key.
        """
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place())

    def raise_problems(self) -> None:
        """Raise an InputError if errors were found.

        The message has one line for each error, in the order of the file. Errors in overrides come last.
        """
        if self.problems:
            in_order = sorted(self.problems, key=lambda problem: problem.place)
            raise InputError("\n".join(dict.fromkeys(problem.shown(self.name) for problem in in_order)))


def parse_document(text: str, name: str) -> Document:
    """Parse the text of a file. Return a document with its values and the errors found in the text.

    Errors such as a repeated key do not stop the parsing. They are recorded, and `validate` raises them.

    Args:
        text: text of the file.
        name: name of the file, for messages.

    Raises:
        InputError: if the text is not valid YAML or is not a mapping.
    """
    document = Document(name)
    try:
        data = _read_value(text, document)
    except yaml.YAMLError as error:
        line, message = _syntax_error(error)
        raise InputError(Problem(Place(line=line), (), message).shown(name)) from None
    if not isinstance(data, dict):
        wrong = "the file is empty" if data is None else f"should be a mapping, not {shown_value(data)}"
        raise InputError(f"{name}: {wrong}")
    document.data = data
    return document


def _read_value(text: str, document: Document) -> Any:
    """Return the value of a YAML text, and record the line numbers of its keys in `document.places`."""
    loader = StrictLoader(text)
    try:
        root = loader.get_single_node()
        return None if root is None else _value_of(root, (), loader, document)
    except RecursionError:
        raise yaml.YAMLError("the document is nested too deeply") from None
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
    except ValueError as error:  # Python refuses to convert integers of thousands of digits
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
            line = document.places[(*path, key)].line
            message = f"given twice, first on line {line}; remove one of the two"
            document.problems.append(Problem(place, (*path, key), message))
        else:
            document.places[(*path, key)] = place
            mapping[key] = _value_of(value_node, (*path, key), loader, document)
    return mapping


def _syntax_error(error: yaml.YAMLError) -> tuple[int, str]:
    """Return the line (0 if unknown) and the message of a YAML error."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return 0, f"invalid YAML: {' '.join(str(error).split())}"
    mark = error.problem_mark or error.context_mark
    because = ", ".join(filter(None, (error.context, error.problem)))
    return (mark.line + 1 if mark else 0), f"invalid YAML: {because}"


def apply_override(document: Document, override: str) -> None:
    """Apply an override of the form `section.key=value`, which changes one value of a document.

    The value is parsed as YAML. The items of a list are addressed by their index, as in `rewards.0.weight=2`.
    If the override is invalid, an error is added to `document.problems`.
    """
    place = Place(override=override)
    try:
        _apply_at(place, document, override)
    except InputError as error:
        document.problems.append(Problem(place, (), str(error)))


def _apply_at(place: Place, document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not all((*sections, last)):
        raise InputError("should have the form section.key=value")
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
    document.changed += [path + below for below in ((), *read.places)]
    document.problems += [Problem(place, path + below.path, below.message) for below in read.problems]


def _key_in(container: Any, name: str, path: KeyPath) -> str | int:
    if isinstance(container, dict):
        return name
    if not isinstance(container, list):
        raise InputError(f"no key {name!r} in {dotted(path)}, which is {shown_value(container)}")
    if not (name.isdecimal() and int(name) < len(container)):
        raise InputError(
            f"no item {name!r} in {dotted(path)}, which is {shown_value(container)}; items are counted from 0"
        )
    return int(name)


def validate(
    model: type[Model], document: Document, prepare: Callable[[Document], object] = lambda document: None
) -> Model:
    """Return the data of a document as an instance of a pydantic model.

    Args:
        model: the pydantic model.
        document: the document.
        prepare: function that is called before the validation and may change the document. If keys are
            misspelled, it is also called for a copy of the document with corrected keys.

    Raises:
        InputError: if the data is invalid, or if `document.problems` already contains errors. The message has
            one line for each error.
    """
    prepare(document)
    try:
        validated = model.model_validate(document.data)
    except ValidationError as error:
        found = complaints(error, model)
        corrected = _with_nearest_keys(error, model, document)
        if corrected is not None:
            # a misspelled key leaves its setting at the default, which would cause further, misleading errors
            unknown = _unknown_keys(error, model.model_json_schema())
            found = [(path, message) for path, message in found if path in unknown]
            with suppress(InputError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                validate(model, corrected, prepare)
            document.problems += corrected.problems
        document.problems += [
            Problem(document.place_of(path), path, message + _override_to_add(document, path, model))
            for path, message in found
        ]
    document.raise_problems()
    return validated


def _override_to_add(document: Document, path: KeyPath, model: type[BaseModel]) -> str:
    """Return the end of an error message: how to override an invalid setting of the file, too.

    The file may be valid without the given overrides, so a further override can fix the error. If the setting
    has a list of choices, a valid choice is suggested. The result is "" if there are no overrides, if the
    setting itself was overridden, or if it is a section.
    """
    place = document.places.get(path)
    own: Any = document.data
    for part in path if place else ():
        own = own[part]
    if (
        place is None
        or place.override
        or isinstance(own, dict)
        or not any(each.override for each in document.places.values())
    ):
        return ""

    def fits(choice: str) -> bool:
        data = copy.deepcopy(document.data)
        section: Any = data
        for part in path[:-1]:
            section = section[part]
        section[path[-1]] = choice
        try:
            model.model_validate(data)
        except ValidationError:
            return False
        return True

    choices = _choices(_follow(_schema(model), path)[1])
    return f"; to change it, add --set {dotted(path)}={next(filter(fits, choices), '…')}"


@cache
def _schema(model: type[BaseModel]) -> Schema:
    """Return the JSON schema of a model. It is cached, because pydantic builds it again in each call."""
    return model.model_json_schema()


def _with_nearest_keys(error: ValidationError, model: type[BaseModel], document: Document) -> Document | None:
    """Return a copy of the document in which unknown keys are replaced by the most similar known keys.

    The list `problems` of the copy is empty. Return None if no unknown key is similar to a known key.
    """
    schema = _schema(model)
    renamed = {}
    for path in _unknown_keys(error, schema):
        near = closest(str(path[-1]), _known_keys(path[:-1], schema))
        if near is not None:
            renamed[path] = (*path[:-1], near)
    if not renamed:
        return None
    corrected = Document(
        document.name,
        copy.deepcopy(document.data),
        dict(document.places),
        changed=[
            next((new + path[len(old) :] for old, new in renamed.items() if path[: len(old)] == old), path)
            for path in document.changed
        ],
    )
    for old, new in renamed.items():
        _rename(corrected, old, new)
    return corrected


def _unknown_keys(error: ValidationError, schema: Schema) -> list[KeyPath]:
    """Return the paths of all unknown keys, in the order of the errors."""
    locations = (each["loc"] for each in error.errors() if each["type"] == "extra_forbidden")
    return [_path_of_unknown(location, schema) for location in locations]


def _rename(document: Document, old: KeyPath, new: KeyPath) -> None:
    """Rename a key of a document.

    If the new key already exists and both values are sections, the sections are merged. If one of the values
    is not a section, the value of the old key is dropped.
    """
    section: Any = document.data
    for part in old[:-1]:
        section = section[part]
    value, known = section.pop(old[-1]), section.get(new[-1])
    if isinstance(known, dict) and isinstance(value, dict):
        known.update(value)
    elif new[-1] not in section:
        section[new[-1]] = value
    moved = {path: place for path, place in document.places.items() if path[: len(old)] == old}
    document.places |= {new + path[len(old) :]: place for path, place in moved.items()}


def complaints(error: ValidationError, model: type[BaseModel]) -> list[tuple[KeyPath, str]]:
    """Return the path of the key and a readable message for each error of a pydantic validation."""
    schema = _schema(model)
    # if a default depends on an invalid setting, only the invalid setting is reported
    found = [details for details in error.errors() if details["type"] != "default_factory_not_called"]
    worded = [_worded(details, schema) for details in found]
    inside = {path[:depth] for path, _ in worded for depth in range(len(path))}
    # an error inside a value is more specific than an error about the whole value
    return [(path, message) for path, message in worded if path not in inside]


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return data as YAML text. Reading this text gives equal data, with the keys in the same order."""
    return yaml.dump(data, Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=100)


def _worded(error: ErrorDetails, schema: Schema) -> tuple[KeyPath, str]:
    """Return the path of the key and a readable message for a pydantic error.

    The message lists the valid values, which come from the JSON schema of the pydantic model.
    """
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    path, node = _follow(schema, error["loc"])
    if kind == "extra_forbidden":
        path = _path_of_unknown(error["loc"], schema)
        return path, _unknown_key(path, schema)
    if kind == "missing":
        return path, "missing; give a value, because there is no default"
    if kind == "value_error":
        return path, str(context["error"])
    if kind == "conflict":
        return path + context["path"], error["msg"]
    expected = _expectation(node, schema)
    if not expected:
        return path, error["msg"]
    names = [choice for choice in _choices(node) if isinstance(choice, str)]
    hint = nearest(value, names) if isinstance(value, str) else ""
    return path, f"should be {expected}, not {shown_value(value)}{hint}"


def _unknown_key(path: KeyPath, schema: Schema) -> str:
    """Return the message for an unknown key.

    The message suggests a similar key of the section, or the same key in another section. If there is no such
    key, the message lists the known keys of the section.
    """
    siblings = _known_keys(path[:-1], schema)
    of_that_name = [known for known in _all_keys(schema, schema) if known[-1] == path[-1]]
    elsewhere = [dotted(known) for known in sorted(of_that_name, key=len)]  # keys of outer sections first
    if hint := nearest(str(path[-1]), siblings) or nearest("".join(elsewhere[:1]), elsewhere):
        return f"unknown key{hint}"
    return f"unknown key; known keys: {', '.join(siblings)}"


def _known_keys(section: KeyPath, schema: Schema) -> list[str]:
    """Return the names of the keys of a section."""
    node = _follow(schema, section)[1]
    return [str(known[0]) for known in _all_keys(node, schema) if len(known) == 1]


def _branches(node: Schema, root: Schema) -> list[Schema]:
    """Return the alternatives (`anyOf`) of a schema node, with references resolved.

    If the node has no alternatives, the returned list contains only the node itself.
    """
    branches = node.get("anyOf", [node])
    return [root["$defs"][b["$ref"].rsplit("/", 1)[-1]] if "$ref" in b else b for b in branches]


def _child(node: Schema, part: str | int, root: Schema) -> Any:
    """Return the schema of the key or the list item `part` of `node`; None if `node` has no such part."""
    for branch in _branches(node, root):
        items = [branch["items"]] if "items" in branch else branch.get("prefixItems", [])
        if isinstance(part, int) and items:
            return items[0]
        if part in branch.get("properties", {}):
            return branch["properties"][part]
    return None


def _follow(root: Schema, location: KeyPath) -> tuple[KeyPath, Schema]:
    """Find the schema node at the location of a pydantic error.

    If a field has a union type, pydantic's location also contains the name of one member of the union. These
    names are not keys of the document.

    Returns:
        the location without the names of members of unions, and the schema node.
    """
    node = root
    path: KeyPath = ()
    for part in location:
        child = _child(node, part, root)
        if child is not None:
            node, path = child, (*path, part)
    return path, node


def _path_of_unknown(location: KeyPath, schema: Schema) -> KeyPath:
    """Return the location of an unknown key without the names of members of unions; see `_follow`."""
    return (*_follow(schema, location[:-1])[0], location[-1])


def _all_keys(node: Schema, root: Schema, path: KeyPath = ()) -> Iterator[KeyPath]:
    for branch in _branches(node, root):
        for key, child in branch.get("properties", {}).items():
            yield (*path, key)
            yield from _all_keys(child, root, (*path, key))


NUMBERS = {"integer": "a whole number", "number": "a number"}
OTHERS = {"string": "text", "boolean": "true or false", "null": "null", "object": "a mapping"}
BOUNDS = {"minimum": "of at least", "exclusiveMinimum": "above"}
BOUNDS |= {"maximum": "at most", "exclusiveMaximum": "below"}


def _expectation(node: Schema, root: Schema) -> str:
    """Return a description of the values that a schema node accepts, such as "a number above 0 or null".

    The description is "" if the schema does not contain this information.
    """
    return " or ".join(filter(None, (_expectation_of_one(branch) for branch in _branches(node, root))))


def _expectation_of_one(branch: Schema) -> str:
    kind = branch.get("type", "")
    if choices := [shown_value(choice) for choice in _choices(branch)]:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if kind in NUMBERS:
        bounds = [f"{words} {branch[bound]:g}" for bound, words in BOUNDS.items() if bound in branch]
        return f"{NUMBERS[kind]} {' and '.join(bounds)}".strip()
    if kind == "array":
        least, most = branch.get("minItems", 0), branch.get("maxItems")
        return f"a list of {'' if least == most else 'at least '}{_num_items(least)}" if least else "a list"
    if kind == "string" and branch.get("minLength"):
        return "text of at least one character"
    return OTHERS.get(kind, "")


def _choices(node: Schema) -> list[Any]:
    choices = [*node.get("enum", []), *([node["const"]] if "const" in node else [])]
    return choices + [choice for branch in node.get("anyOf", []) for choice in _choices(branch)]


def dotted(path: KeyPath) -> str:
    """Return a path as text, such as `rewards.0.weight`."""
    return ".".join(str(part) for part in path)


def shown_value(value: Any) -> str:
    """Return a value as text for a message: as in YAML, but long values are shortened."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {_num_items(len(value))}" if value else "an empty list"
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else repr(value[:57] + "...")
    return "null" if value is None else str(value).lower()


def _num_items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"
