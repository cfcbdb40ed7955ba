"""Base class of all settings classes, types of keys, and errors at nested keys.

The validator of a field sees only the fields defined above it, so a field that depends on another one is
defined below that field.
"""

import inspect
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, PydanticUndefined

from llm_reinforce.config.strict_yaml import KeyPath, complaints, dotted
from llm_reinforce.errors import InputError

MAX_SEED = 10**18  # exclusive upper bound of seeds; torch accepts 64 bits

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def conflict(path: KeyPath, message: str) -> PydanticCustomError:
    """Return an error at a key inside the field that is being validated."""
    return PydanticCustomError("conflict", "{message}", {"path": path, "message": message})


if TYPE_CHECKING:
    _Model = BaseModel
else:

    class _ReadableErrors(type(BaseModel)):
        """Type of the settings classes: a call with invalid values raises an InputError."""

        def __call__(cls, *arguments: Any, **values: Any) -> Any:
            try:
                return super().__call__(*arguments, **values)
            except ValidationError as error:
                lines = [f"{cls.__name__}.{dotted(path)}: {what}" for path, what in complaints(error, cls)]
                raise InputError("\n".join(lines)) from None

    class _Model(BaseModel, metaclass=_ReadableErrors):
        """A model whose invalid values are InputErrors."""


class Section(_Model):
    """Base class of all settings classes: frozen, without type conversions and without unknown keys.

    The descriptions of the keys become a part of the class's docstring.

    Raises:
        InputError: if a key is unknown or a value is invalid. The message has one line for each problem.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        keys = {name: field for name, field in cls.model_fields.items() if field.description}
        if keys:
            described = [
                textwrap.fill(
                    f"{name}: {(field.description or '').replace('null', 'None')}{_default(field.default)}.",
                    100,
                    initial_indent="    ",
                    subsequent_indent="        ",
                )
                for name, field in keys.items()
            ]
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *described])


def _default(value: object) -> str:
    return "" if value is PydanticUndefined or isinstance(value, BaseModel) else f" (default: {value!r})"
