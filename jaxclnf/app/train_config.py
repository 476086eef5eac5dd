"""What `jaxclnf train` is to do, as its TOML file says."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

from jaxclnf.app.toml_file import fill_dataclass, read_toml
from jaxclnf.learn.options import ExpertOptions, ShapeOptions, ValidatorOptions
from jaxclnf.learn.pdm.landmark_fit import FEWEST_LANDMARKS
from jaxclnf.learn.require import require, require_absent

_OUTLINE_OF_68 = (0, 17)
_LONGEST = 100
"""Characters of a name of which a file's can be made on every system."""


@dataclasses.dataclass(frozen=True)
class DataSource:
    """A folder of photographs and their labels.

    Labels are pixels of the upright picture, `(x, y)`, the first pixel's centre at
    `(0, 0)`. They are in `.pts` files beside the photographs, one face each, or in one
    `.npz` file.
    """

    images: Path = dataclasses.field(metadata={"exists": "folder"})
    """Folder of the photographs."""
    labels: Path | None = dataclasses.field(default=None, metadata={"exists": "file"})
    """An .npz file of labels; if absent, .pts files beside the photographs."""
    names_key: str = "names"
    """Array of the .npz file: the file of each face within the folder, `(f,)`."""
    landmarks_key: str = "landmarks"
    """Array of the .npz file: the labels, `(f, n, 2)`."""
    spread_key: str | None = None
    """Array of the .npz file: standard deviation of each label, `(f, n)`; infinite
    where a label is unknown, which may then be NaN. If absent, all count as exact."""
    spread_unit: Literal["px", "percent_interocular"] = "px"
    """Unit of the spread: pixels, or percent of the distance of two eye corners."""
    eye_corners: tuple[int, int] | None = None
    """Landmarks whose distance is the interocular one; if absent, 36 and 45 of 68."""
    use_key: str | None = None
    """Array of the .npz file: whether to use each face, `(f,)`. If absent, all."""
    prefix: str = ""
    """Put before the names of the faces, where files of several folders share names."""

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if self.labels is None:
            unused = "names_key", "landmarks_key", "spread_key", "use_key"
            require_absent(self, unused, "where labels are in .pts files")
        else:
            is_npz = self.labels.suffix.lower() == ".npz"
            require(self, "labels", is_npz, "an .npz file")
        pair = self.eye_corners
        two = pair is None or (min(pair) >= 0 and pair[0] != pair[1])
        require(self, "eye_corners", two, "two different landmarks")


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """Which labels are learnt from, and how far they are trusted."""

    held_out: float = 0.1
    """Share of the faces kept for validation, chosen by their names."""
    num_landmarks: int | None = None
    """Landmarks of every face; if absent, as many as most faces have."""
    max_face_px: float = 240.0
    """Larger side of a face's box above which its picture is shrunk, pixels."""
    outline: tuple[int, ...] | None = None
    """First landmark of the face's outline and the one after its last, from the image's
    left to its right; empty: there is none. If absent, 0 and 17 of 68 landmarks, none
    of another number."""
    mask_far_outline_deg: float = 20.0
    """Yaw beyond which labels of the far half of the outline are not used, degrees."""
    min_spread_percent: float = 0.5
    """No label counts as more exact than this: percent of the face's size, the larger
    side of the box of its labels."""

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        require(self, "held_out", 0 < self.held_out < 1, "above 0 and below 1")
        count = self.num_landmarks
        enough = count is None or count >= FEWEST_LANDMARKS
        require(self, "num_landmarks", enough, f"{FEWEST_LANDMARKS} or more")
        require(self, "max_face_px", self.max_face_px >= 32, "32 or more")
        pair = self.outline
        fine = not pair or (len(pair) == 2 and 0 <= pair[0] < pair[1])
        require(self, "outline", fine, "two landmarks, the first below, or none")
        angle = self.mask_far_outline_deg
        require(self, "mask_far_outline_deg", 0 <= angle <= 180, "0 to 180")
        spread = self.min_spread_percent
        require(self, "min_spread_percent", 0 < spread <= 100, "above 0, to 100")

    def outline_of(self, num_landmarks: int) -> range:
        """The landmarks of the outline; none if there is none.

        Raises:
            ValueError: Faces do not have so many landmarks.
        """
        pair = self.outline
        if pair is None:
            pair = _OUTLINE_OF_68 if num_landmarks == 68 else ()
        outline = range(*pair) if pair else range(0)
        inside = outline.stop <= num_landmarks
        require(
            self, "outline", inside, f"0 to {num_landmarks}, as there are landmarks"
        )
        return outline


@dataclasses.dataclass(frozen=True)
class BoxOptions:
    """Boxes that fits begin from."""

    calibrate: bool = True
    """Whether to learn where the landmarks are in a square of the face detector."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a training run. Paths are relative to the folder of the TOML file."""

    name: str
    """Short name of the model; also that of its file, `NAME.npz`."""
    out: Path
    """Folder of the model's file, the checkpoints and the summary."""
    data: tuple[DataSource, ...]
    """Photographs and labels, one `[[data]]` per folder."""
    seed: int = 0
    """Seed of all that is drawn at random."""
    licence_files: tuple[Path, ...] = dataclasses.field(
        default=(), metadata={"exists": "file"}
    )
    """Texts that must travel with the model: they become part of its file."""
    provenance: str = ""
    """How and from what the model is made, for people."""
    labels: LabelOptions = LabelOptions()
    """Which labels are learnt from."""
    shape: ShapeOptions = ShapeOptions()
    """The shape model."""
    experts: ExpertOptions = ExpertOptions()
    """The patch experts."""
    boxes: BoxOptions = BoxOptions()
    """Boxes that fits begin from."""
    validator: ValidatorOptions = ValidatorOptions()
    """When a fit is to be trusted."""

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        plain = self.name.strip() == self.name != "" and self.name.isprintable()
        plain = plain and not set(self.name) & set("/\\") and len(self.name) <= _LONGEST
        plain = plain and self.name[0] != "." and not self.name.endswith(".npz")
        require(self, "name", plain, "a name that a file can have, without .npz")
        require(self, "seed", 0 <= self.seed < 2**32, "0 to 4294967295")
        require(self, "data", len(self.data) > 0, "one [[data]] or more")
        places = [(source.images, source.labels) for source in self.data]
        once = len(set(map(_resolved, places))) == len(places)
        require(self, "data", once, "each folder once")
        fine = not self.shape.symmetric or min(self.experts.views_deg) >= 0
        expected = "0 or more where faces are symmetric: the others are mirrored"
        require(self, "experts.views_deg", fine, expected)


def _resolved(paths: tuple[Path | None, ...]) -> tuple[str | None, ...]:
    return tuple(None if path is None else os.path.realpath(path) for path in paths)


def read_train_config(path: str | os.PathLike[str]) -> TrainConfig:
    """Reads the TOML file of a training run.

    Args:
        path: The file.

    Returns:
        Its content, with paths that begin at its folder.

    Raises:
        ArgumentError: It is no such file; the message names the file, the key, the
            value and what is expected.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "train.toml")
        ...     text = 'name = "mine"\\nout = "build"\\n[[data]]\\nimages = "."'
        ...     _ = file.write_text(text)
        ...     config = read_train_config(file)
        >>> config.name, config.out.name, config.labels.held_out
        ('mine', 'build', 0.1)
    """
    return fill_dataclass(TrainConfig, read_toml(path), Path(path))
