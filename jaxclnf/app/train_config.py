"""What `jaxclnf train` is to do, as its TOML file says."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

from jaxclnf.app.toml_file import fill_dataclass, read_toml, require
from jaxclnf.learn.options import ExpertOptions, ShapeOptions, ValidatorOptions


@dataclasses.dataclass(frozen=True)
class DataSource:
    """A folder of photographs and their labels.

    Labels are pixels of the upright picture, `(x, y)`, pixel centres at integers. They
    are in `.pts` files beside the photographs, one face each, or in one `.npz` file.
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
    eye_corners: tuple[int, int] = (36, 45)
    """Landmarks whose distance is the interocular one."""
    use_key: str | None = None
    """Array of the .npz file: whether to use each face, `(f,)`. If absent, all."""
    prefix: str = ""
    """Put before the names of the faces, where files of several folders share names."""

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if self.labels is None:
            for key in ("spread_key", "use_key"):
                absent = getattr(self, key) is None
                require(self, key, absent, "none where labels are in .pts files")
        else:
            is_npz = self.labels.suffix.lower() == ".npz"
            require(self, "labels", is_npz, "an .npz file")
        one, other = self.eye_corners
        two = min(one, other) >= 0 and one != other
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
    outline: tuple[int, ...] = (0, 17)
    """First landmark of the face's outline and the one after its last, from the image's
    left to its right; empty: there is none."""
    mask_far_outline_deg: float = 20.0
    """Yaw beyond which labels of the far half of the outline are not used, degrees."""
    min_spread_percent: float = 0.5
    """No label counts as more exact than this: percent of the face's size, the larger
    side of the box of its labels."""

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        require(self, "held_out", 0 <= self.held_out < 1, "0 or more and below 1")
        few = self.num_landmarks is not None and self.num_landmarks < 2
        require(self, "num_landmarks", not few, "2 or more")
        require(self, "max_face_px", self.max_face_px >= 32, "32 or more")
        pair = self.outline
        fine = not pair or (len(pair) == 2 and 0 <= pair[0] < pair[1])
        require(self, "outline", fine, "two landmarks, the first below, or none")
        angle = self.mask_far_outline_deg
        require(self, "mask_far_outline_deg", 0 <= angle <= 180, "0 to 180")
        spread = self.min_spread_percent
        require(self, "min_spread_percent", 0 <= spread <= 100, "0 to 100")

    @property
    def outline_landmarks(self) -> range:
        """The landmarks of the outline; none if there is none."""
        return range(*self.outline) if self.outline else range(0)


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
        plain = self.name.strip() == self.name != "" and not set(self.name) & set("/\\")
        require(self, "name", plain, "a name that a file can have")
        require(self, "seed", 0 <= self.seed < 2**32, "0 to 4294967295")
        require(self, "data", len(self.data) > 0, "one [[data]] or more")


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
