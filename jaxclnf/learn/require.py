"""Refusing options that make no sense, in the words of the file they come from."""

import dataclasses
import json
from pathlib import Path

_LONGEST = 60
"""Characters of a value that a message shows."""


def require(options: object, key: str, is_fine: object, expected: str) -> None:
    """Refuses a field of a dataclass of options.

    Args:
        options: The dataclass.
        key: Name of the field; after dots, that of a field of a field.
        is_fine: Whether its value makes sense.
        expected: What would.

    Raises:
        ValueError: It does not; the message names key, value and what is expected.

    Example:
        >>> from jaxclnf.learn.options import ExpertOptions
        >>> require(ExpertOptions(), "field.support", False, "1 or more")
        Traceback (most recent call last):
        ...
        ValueError: field.support: found 11, expected 1 or more
    """
    if is_fine:
        return
    value = options
    for name in key.split("."):
        value = getattr(value, name)
    raise ValueError(f"{key}: found {shown(value)}, expected {expected}")


def require_absent(options: object, keys: tuple[str, ...], where: str) -> None:
    """Refuses fields of a dataclass of options that have no effect.

    Args:
        options: The dataclass, whose fields have defaults.
        keys: Names of the fields.
        where: Where they have none, for the message.

    Raises:
        ValueError: One is not what it is by default.

    Example:
        >>> from jaxclnf.learn.options import ExpertOptions
        >>> require_absent(ExpertOptions(), ("scales",), "where there is no picture")
    """
    fields = dataclasses.fields(options)  # pyright: ignore[reportArgumentType]
    defaults = {field.name: field.default for field in fields}
    for key in keys:
        absent = getattr(options, key) == defaults[key]
        require(options, key, absent, f"none {where}")


def shown(value: object) -> str:
    """A value as a TOML file would have it, or the beginning of it.

    Args:
        value: The value.

    Returns:
        Its text; paths are never cut.

    Example:
        >>> shown((0.5, True))
        '[0.5, true]'
    """
    if isinstance(value, dict):
        return "a table"
    text = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, Path) or len(text) <= _LONGEST:
        return text
    return text[: _LONGEST - 4] + " ..."
