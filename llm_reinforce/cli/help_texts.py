"""Typer applications with shorter help texts: no type for flags, and no `range` in the types of numbers."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> Any:
        return _with_short_types(super().get_params(ctx))


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> Any:
        return _with_short_types(super().get_params(ctx))


class App(typer.Typer):
    """Typer application with short help texts.

    Args:
        options: keyword arguments of `typer.Typer`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=_Command, **options)


def _with_short_types(params: Any) -> Any:
    """Set the types that help texts show: none for a flag, and `<int>` instead of `<int range>`."""
    for param in params:
        if isinstance(param, TyperOption) and param.metavar is None:
            if param.is_flag:
                param.metavar = ""
            elif param.min is not None or param.max is not None:
                param.metavar = f"<{param.bare_type()}>".replace(" | None", "")
    return params
