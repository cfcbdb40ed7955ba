"""What all settings classes share: the strict base class, the types of keys, and errors at a nested key.

A field's validator sees the fields written above it, so a field that depends on another is written below it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from llm_reinforce.config.strict_yaml import KeyPath

MAX_SEED = 10**18  # what a seed is below; torch takes 64 bits

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def conflict(path: KeyPath, message: str) -> PydanticCustomError:
    """An error at a key inside the field that is being validated."""
    return PydanticCustomError("conflict", "{message}", {"path": path, "message": message})


class Section(BaseModel):
    """What all sections share: no conversions, no unknown keys, no changes after birth."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
