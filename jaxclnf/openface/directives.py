"""The lines of OpenFace's main and detector files: a directive and what it names."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxclnf.errors import ModelFileError
from jaxclnf.openface.text import read_text

_MAIN = (
    "LandmarkDetector",
    "LandmarkDetector_part",
    "DetectionValidator",
    "FaceDetConversion",
)
_DETECTOR = (
    "PDM",
    "Triangulations",
    "PatchesIntensity",
    "PatchesCCNF",
    "PatchesCEN",
    "EarlyTermination",
)


class Directive(NamedTuple):
    """One line of a main or detector file."""

    file: Path
    """The file it stands in."""
    line: int
    """Its line number there, from 1."""
    name: str
    """What it is about."""
    rest: str
    """The remainder of the line."""

    @property
    def is_detector(self) -> bool:
        """Whether it belongs into a detector file, not a main file."""
        return self.name in _DETECTOR

    def error(self, found: str, expected: str) -> ModelFileError:
        """The error for this line."""
        return ModelFileError(
            f"{self.file}, line {self.line}, {self.name}: found {found}, expected"
            f" {expected}"
        )

    def target(self, relative: str | None = None) -> Path:
        """The existing file that the line names; `relative` if it names more."""
        relative = self.rest if relative is None else relative
        target = self.file.parent / relative.replace("\\", "/")
        if not relative or not os.path.isfile(target):
            raise self.error(f"{relative!r}, no such file", "an existing file")
        return target


def read_directives(path: str | os.PathLike[str]) -> list[Directive]:
    """Reads a main or a detector file; its first directive tells which of them it is.

    Args:
        path: The file.

    Returns:
        Its directives, all of the same kind of file; at least one.

    Raises:
        ModelFileError: If the file cannot be read or a directive is not known.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"LandmarkDetector clnf_tiny.txt\\r\\n")
        ...     file.flush()
        ...     [directive.rest for directive in read_directives(file.name)]
        ['clnf_tiny.txt']
    """
    path = Path(path)
    directives: list[Directive] = []
    known = (*_MAIN, *_DETECTOR)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name, *rest = line.split(maxsplit=1) or ["#"]
        if name.startswith("#"):
            continue
        if name not in known:
            raise ModelFileError(
                f"{path}, line {number}: found {name[:30]!r}, expected one of"
                f" {', '.join(known)}"
            )
        if not directives:
            known = _DETECTOR if name in _DETECTOR else _MAIN
        directives.append(Directive(path, number, name, "".join(rest).strip()))
    if not directives:
        raise ModelFileError(f"{path}: found no directive, expected {_MAIN[0]} <file>")
    return directives


def named(directives: Sequence[Directive], name: str) -> list[Directive]:
    """The directives of one name.

    Args:
        directives: Those of a file.
        name: Which to pick.

    Returns:
        All of that name, in file order.

    Example:
        >>> import pathlib
        >>> pdm_line = Directive(pathlib.Path("clnf.txt"), 1, "PDM", "pdm.txt")
        >>> len(named([pdm_line], "PDM")), len(named([pdm_line], "PatchesCCNF"))
        (1, 0)
    """
    return [directive for directive in directives if directive.name == name]


def only(directives: Sequence[Directive], name: str) -> Directive:
    """The single directive of one name.

    Args:
        directives: Those of a file, at least one.
        name: Which to pick.

    Returns:
        The only one of that name.

    Raises:
        ModelFileError: If there is none or several.

    Example:
        >>> import pathlib
        >>> pdm_line = Directive(pathlib.Path("clnf.txt"), 1, "PDM", "pdm.txt")
        >>> only([pdm_line], "PDM").rest
        'pdm.txt'
    """
    found = named(directives, name)
    if len(found) != 1:
        raise ModelFileError(
            f"{directives[0].file}: found {len(found)} lines {name}, expected one"
        )
    return found[0]
