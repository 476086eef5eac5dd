"""OpenFace's licence, found beside its files."""

import dataclasses
import hashlib
import os
from pathlib import Path

from jaxclnf.openface.text import read_text

LICENCE_FILES = ("OpenFace-license.txt", "Copyright.txt")
"""Texts that are looked for beside the models and up to four folders further up."""

IN_SHORT = (
    "OpenFace's models are for academic or non-profit, non-commercial research use"
    " only. They may not be passed on, nor may files made from them. The whole licence"
    " is OpenFace-license.txt of https://github.com/TadasBaltrusaitis/OpenFace."
)
"""What is shown where there is no licence text beside the models."""

_LEVELS_UP = 4  # from lib/local/LandmarkDetector/model to the folder around lib


@dataclasses.dataclass(frozen=True)
class Licence:
    """The licence of some model files."""

    text: str
    """What is shown and agreed to."""
    files: tuple[Path, ...] = ()
    """Where it was found; nowhere if it is `IN_SHORT`."""

    @property
    def digest(self) -> str:
        """SHA-256 of the text, by which its acceptance is remembered."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def source(self) -> str:
        """Where it was found, in words."""
        if not self.files:
            return "in short, as there is no text of it beside the models"
        names = ", ".join(file.name for file in self.files)
        return f"{names} in {self.files[0].parent}"


def find_licence(folder: str | os.PathLike[str]) -> Licence:
    """Finds the licence of model files: the nearest folder upwards that has one.

    Args:
        folder: OpenFace's folder of models.

    Returns:
        The licence and notices; `IN_SHORT` if there are none.

    Raises:
        ModelFileError: If a licence file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "OpenFace-license.txt").write_text("For research.\\n")
        ...     Path(folder, "model").mkdir()
        ...     find_licence(Path(folder, "model")).text
        'For research.'
    """
    nearest = Path(folder).resolve()
    for place in (nearest, *nearest.parents[:_LEVELS_UP]):
        files = [place / name for name in LICENCE_FILES]
        files = tuple(file for file in files if os.path.isfile(file))
        if files:
            return Licence(
                "\n\n".join(read_text(file).strip() for file in files), files
            )
    return Licence(IN_SHORT)
