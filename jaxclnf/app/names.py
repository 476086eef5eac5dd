"""Names of results, none of which takes the place of an input or of another result."""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.tables import partial_path

SUMMARY, BOXES = "summary", "boxes"
"""Names of the tables about all photographs together."""

_SUFFIXES = "csv", "png", "partial.csv"
"""Of the files that may be written for a name."""


def output_names(
    images: Sequence[Path],
    out: Path,
    used: Sequence[str | os.PathLike[str]] = (),
    *,
    tables: Sequence[str] = (SUMMARY, BOXES),
    pictures: bool = True,
) -> list[str]:
    """Names for the results of some photographs, without their suffix.

    Args:
        images: The photographs, in order.
        out: Folder of the results.
        used: Files that no result may replace.
        tables: Names of tables about all photographs together.
        pictures: Whether there is a picture for each name.

    Returns:
        Each photograph's own name without its suffix; with `_2`, `_3`, ... where an
        earlier photograph, one of `tables` or a file of `used` has it already, or that
        of its unfinished table. Upper and lower case count as the same, as on some
        systems they are.

    Example:
        >>> from pathlib import Path
        >>> output_names([Path("a/me.jpg"), Path("b/me.png")], Path("out"))
        ['me', 'me_2']
    """
    protected = {_key(Path(path)) for path in used}
    suffixes = [s for s in _SUFFIXES if pictures or s != "png"]
    taken = {name for table in tables for name in _tables(table)}
    names = []
    for image in images:
        name, count = image.stem, 1
        while _tables(name) & taken or any(
            _key(out / f"{name}.{suffix}") in protected for suffix in suffixes
        ):
            count += 1
            name = f"{image.stem}_{count}"
        taken |= _tables(name)
        names.append(name)
    return names


def check_name(name: str, num_inputs: int, kind: str) -> None:
    """Looks at what `--name` was given.

    Args:
        name: The name.
        num_inputs: How many inputs there are.
        kind: What one of them is.

    Raises:
        ArgumentError: It is no file's name, or there are several inputs.

    Example:
        >>> check_name("me", 1, "photograph")
    """
    if num_inputs > 1:
        raise ArgumentError(
            f"--name {name}: is for one {kind}, found {num_inputs} of them"
        )
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ArgumentError(
            f"--name {name!r}: must be a file's name without folder and suffix; --out"
            " chooses the folder"
        )


def _tables(name: str) -> set[str]:
    """The table of a name and what is left of an unfinished one, which goes with it."""
    table = f"{name}.csv".casefold()
    return {table, str(partial_path(table))}


def _key(path: Path) -> str:
    return os.path.realpath(path).casefold()
