"""Base class of all settings classes, types of keys, and errors at nested keys.

The validator of a field sees only the fields defined above it, so a field that depends on another one is
defined below that field.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from llm_reinforce.config.strict_yaml import KeyPath

MAX_SEED = 10**18  # exclusive upper bound of seeds; torch accepts 64 bits

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def conflict(path: KeyPath, message: str) -> PydanticCustomError:
    """Return an error at a key inside the field that is being validated."""
    return PydanticCustomError("conflict", "{message}", {"path": path, "message": message})


class Section(BaseModel):
    """Base class of all settings classes: frozen, without type conversions and without unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
