"""Refusing options that make no sense, in the words of the file they come from."""

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
