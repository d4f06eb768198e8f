"""Typed, frozen configuration: what a config class is and how one is parsed.

A module's configuration is a frozen dataclass beside it, marked :func:`settings`.
Parsing is pydantic's: unknown keys, wrong types and values out of range become
one-line :class:`~iwm.errors.ConfigError` messages that name the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from iwm.errors import ConfigError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only dataclass that refuses unknown keys."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def parse(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a settings class from plain values.

    Args:
        cls: a class marked :func:`settings`.
        values: nested mappings, lists and scalars, as YAML gives them.
        where: the name of the section, for error messages.

    Raises:
        ConfigError: one line per wrong key: its path, what was expected, what was given.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join([where, *(str(part) for part in item['loc'])])}: {item['msg']}"
            f" (given {item['input']!r})"
            for item in error.errors()
        )
        raise ConfigError(problems) from None


def to_dict(value: Any) -> dict[str, Any]:
    """The plain values of a settings object, ready for JSON or YAML."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(inner) for inner in item]
        return item

    return {key: plain(inner) for key, inner in dataclasses.asdict(value).items()}
