"""Which boxes of a table belong to which photograph."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.streams import say
from jaxclnf.app.tables import ANY_IMAGE, read_boxes


def boxes_of_images(
    table: str | os.PathLike[str], images: Sequence[Path]
) -> list[Float64[np.ndarray, "b 4"]]:
    """The boxes of each photograph, out of one table.

    A photograph is known by its path as it is given, else by another path to the same
    place (`./me.jpg`, or an absolute one), else by its file's name alone. Boxes that
    are of none of the photographs are left out, with a line on the error stream.

    Args:
        table: A table as `read_boxes` reads it.
        images: The photographs.

    Returns:
        For each photograph its boxes, in the order of the table; no rows where it has
        none.

    Raises:
        ArgumentError: A name could mean several photographs, or the table has no column
            `image` and there are several.
        TableError: It is no such table.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder, "boxes.csv")
        ...     _ = table.write_text("image,x,y,width,height\\n./a.jpg,1,2,30,40\\n")
        ...     boxes = boxes_of_images(table, [Path("a.jpg"), Path("b.jpg")])
        >>> [one.shape for one in boxes]
        [(1, 4), (0, 4)]
    """
    given = read_boxes(table)
    if ANY_IMAGE in given:
        if len(set(images)) > 1:
            raise ArgumentError(
                f"{table}: has no column 'image', which {len(images)} photographs need"
            )
        return [given[ANY_IMAGE]] * len(images)

    # Whole paths come first: names may repeat from folder to folder.
    names = _names_by_path(given, images)
    by_path = {name for some in names.values() for name in some}
    bare = [i for i in names if not names[i] and i.name in given.keys() - by_path]
    for image in bare:
        others = sorted(str(other) for other in bare if other.name == image.name)
        if len(others) > 1:
            raise ArgumentError(
                f"{table}: '{image.name}' could mean {' or '.join(others)};"
                " give the whole path in the column 'image'"
            )
        names[image] = [image.name]
    used = {name for some in names.values() for name in some}
    if unused := [name for name in given if name not in used]:
        say(
            f"jaxclnf: {table}: boxes of {len(unused)} other images are left out, the"
            f" first is '{unused[0]}'"
        )
    nothing = np.empty((0, 4))
    return [
        np.concatenate([nothing, *(given[name] for name in names[image])])
        for image in images
    ]


def _names_by_path(
    given: Mapping[str, np.ndarray], images: Sequence[Path]
) -> dict[Path, list[str]]:
    """The names in the table that are a path to each photograph."""
    names: dict[Path, list[str]] = dict.fromkeys(images, [])
    for same in (_normal, os.path.realpath):
        found = defaultdict(list)
        for name in given:
            found[same(name)].append(name)
        for image in images:
            names[image] = names[image] or found[same(str(image))]
    return names


def _normal(path: str) -> str:
    # A table's names have no blanks around them.
    return str(Path(path.strip()))
