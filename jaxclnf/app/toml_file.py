"""TOML files read into frozen dataclasses.

The dataclasses are the format. A field is a key, a field that is a dataclass is a
table, a tuple of dataclasses an array of tables; a default makes a key optional. A
dataclass refuses values that make no sense by a `ValueError` that begins with the key;
a `Path` that has to be there has the metadata `exists`, `"file"` or `"folder"`.
"""

import dataclasses
import math
import os
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from jaxclnf.app.errors import ArgumentError
from jaxclnf.learn.require import shown

_T = TypeVar("_T")
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    Path: "a path, as text",
}


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a TOML file.

    Args:
        path: The file.

    Returns:
        Its keys and values.

    Raises:
        ArgumentError: It cannot be read, or is no TOML file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.toml")
        ...     _ = file.write_text("seed = 3")
        ...     read_toml(file)
        {'seed': 3}
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ArgumentError(
            f"{path}: cannot be read ({error.strerror}), expected a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: is no TOML file: {error}") from error


def fill_dataclass(
    cls: type[_T], table: dict[str, Any], file: Path, section: str = ""
) -> _T:
    """Makes a dataclass from a table of a TOML file.

    Its fields may be bool, int, float, str, Path, Literal, dataclasses, tuples of
    these, or these or None; None is what an absent key stands for.

    Args:
        cls: The dataclass.
        table: Keys and values.
        file: The TOML file, for messages; relative paths begin at its folder, and those
            with `~` at the user's.
        section: Name of the table, for messages.

    Returns:
        The dataclass.

    Raises:
        ArgumentError: A key is unknown or absent, or a value is not what it must be.
        TypeError: A field has a type that has no counterpart in a TOML file.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     size: int = 0
        >>> fill_dataclass(Options, {"size": 3}, Path("a.toml"))
        Options(size=3)
        >>> fill_dataclass(Options, {"size": "x"}, Path("a.toml"), "shape")
        Traceback (most recent call last):
        ...
        jaxclnf.app.errors.ArgumentError: a.toml: [shape] size: found "x", expected a \
whole number
    """
    prefix = f"{file}: [{section}] " if section else f"{file}: "
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(cls)
    above = "; keys of no table stand above the first table" if section else ""
    for key in table:
        if key not in fields:
            raise ArgumentError(
                f"{prefix}{key}: found an unknown key, expected {', '.join(fields)}"
                f"{above}"
            )
    values = {}
    for key, field in fields.items():
        if key in table:
            place = _Place(file, section, key, field.metadata.get("exists"))
            values[key] = _convert(hints[key], table[key], place)
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise ArgumentError(
                f"{prefix}{key}: found no such key, expected {_word(hints[key])}"
            )
    try:
        return cls(**values)
    except ArgumentError:
        raise
    except ValueError as error:
        raise ArgumentError(f"{prefix}{error}") from error


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a value stands, and what must exist if it is a path."""

    file: Path
    section: str
    key: str
    exists: str | None

    @property
    def table(self) -> str:
        """What the key is called when it is a table itself."""
        return f"{self.section}.{self.key}" if self.section else self.key

    def wrong(self, value: Any, expected: str) -> ArgumentError:
        """The error of a value at this place."""
        section = f"[{self.section}] " if self.section else ""
        return ArgumentError(
            f"{self.file}: {section}{self.key}: found {shown(value)}, expected"
            f" {expected}"
        )


def _convert(hint: Any, value: Any, place: _Place) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = _not_none(args)
        return _convert(hint, value, place)
    if origin is typing.Annotated:
        return _convert(args[0], value, place)
    if origin is typing.Literal:
        # True equals 1, and 1.0 too.
        for choice in args:
            if type(choice) is type(value) and choice == value:
                return choice
        raise place.wrong(value, _word(hint))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise place.wrong(value, _word(hint))
        return fill_dataclass(hint, value, place.file, place.table)  # pyright: ignore[reportArgumentType]
    if origin is tuple:
        return _convert_tuple(hint, value, place)
    return _convert_plain(hint, value, place)


def _convert_tuple(hint: Any, value: Any, place: _Place) -> tuple:
    args = typing.get_args(hint)
    if not isinstance(value, list):
        raise place.wrong(value, _word(hint))
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise place.wrong(value, _word(hint))
    return tuple(
        _convert(arg, item, dataclasses.replace(place, key=f"{place.key} #{i}"))
        for i, (arg, item) in enumerate(zip(args, value, strict=True), 1)
    )


def _convert_plain(hint: Any, value: Any, place: _Place) -> Any:
    if hint is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise place.wrong(value, _word(hint))
    if hint is Path and isinstance(value, str) and value and "\0" not in value:
        return _convert_path(value, place)
    if hint is Path or type(value) is not hint:
        raise place.wrong(value, _word(hint))
    return value


def _convert_path(value: str, place: _Place) -> Path:
    path = place.file.parent / os.path.expanduser(value)
    there = {"file": os.path.isfile, "folder": os.path.isdir}
    if place.exists is not None and not there[place.exists](path):
        raise place.wrong(value, f"a {place.exists}, and {path} is none")
    return path


def _not_none(args: tuple) -> list:
    others = [arg for arg in args if arg is not types.NoneType]
    if len(others) != 1:
        raise TypeError(f"a choice of {others} has no counterpart in a TOML file")
    return others


def _word(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = _not_none(args)
        return _word(hint)
    if origin is typing.Annotated:
        return _word(args[0])
    if origin is typing.Literal:
        return " or ".join(map(shown, args))
    if dataclasses.is_dataclass(hint):
        return "a table"
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list, each {_word(args[0])}"
        return f"a list of {len(args)}: {', '.join(map(_word, args))}"
    if hint not in _WORDS:
        raise TypeError(f"{hint} has no counterpart in a TOML file")
    return _WORDS[hint]
