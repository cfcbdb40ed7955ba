"""Base class of all settings classes, common types of settings, and errors for nested keys.

The validator of a field can only use the values of fields that are defined above this field. A field whose
validation depends on other fields is therefore defined below these other fields.
"""

import inspect
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, PydanticUndefined

from llm_reinforce.config.strict_yaml import KeyPath, complaints, dotted
from llm_reinforce.errors import InputError

MAX_SEED = 10**18  # exclusive upper bound of seeds, below the limit of 64 bits that torch accepts

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def conflict(path: KeyPath, message: str) -> PydanticCustomError:
    """Return the error that a field's validator raises for a key nested inside the field.

    Args:
        path: location of the key, relative to the field.
        message: error message without the location.
    """
    return PydanticCustomError("conflict", "{message}", {"path": path, "message": message})


if TYPE_CHECKING:
    _Model = BaseModel
else:

    class _ReadableErrors(type(BaseModel)):
        """Metaclass of the settings classes. Invalid values raise an InputError, not a ValidationError."""

        def __call__(cls, *arguments: Any, **values: Any) -> Any:
            try:
                return super().__call__(*arguments, **values)
            except ValidationError as error:
                lines = [f"{cls.__name__}.{dotted(path)}: {what}" for path, what in complaints(error, cls)]
                raise InputError("\n".join(dict.fromkeys(lines))) from None

    class _Model(BaseModel, metaclass=_ReadableErrors):
        """A pydantic model that raises an InputError if its values are invalid."""


class Section(_Model):
    """Base class of all settings classes.

    Instances are immutable. Values are not converted to other types, and unknown keys are rejected. The
    descriptions of the keys are added to the docstring of the class.

    Raises:
        InputError: if a key is unknown or a value is invalid. The message has one line for each error.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        serialize_by_alias=True,  # a key such as `from` is not a name in Python
        json_schema_extra=lambda schema: schema.update(description=_summary(schema)),
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        keys = {name: field for name, field in cls.model_fields.items() if field.description}
        if keys:
            described = [
                textwrap.fill(
                    f"{field.alias or name}: {(field.description or '').replace('null', 'None')}"
                    f"{_default(field.default)}.",
                    100,
                    initial_indent="    ",
                    subsequent_indent="        ",
                )
                for name, field in keys.items()
            ]
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *described])


def _summary(schema: dict[str, Any]) -> str:
    """Return the first paragraph of a JSON schema's description, without the list of keys that follows."""
    return str(schema.get("description", "")).split("\n\n")[0].replace("\n", " ")


def _default(value: object) -> str:
    return "" if value is PydanticUndefined or isinstance(value, BaseModel) else f" (default: {value!r})"
