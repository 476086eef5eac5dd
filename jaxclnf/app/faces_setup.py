"""What `jaxclnf fit` and `jaxclnf track` share: options, model, detector, camera.

Both commands find faces, fit them and write OpenFace's columns, so they take the same
arguments for it and make the same things of them; `face_rows` makes the rows.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float64, UInt8

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.face_rows import Dialect, has_eyes, is_of_openface
from jaxclnf.app.media import MAX_SIDE
from jaxclnf.app.networks import find_networks
from jaxclnf.app.streams import say
from jaxclnf.detect.haar import detect_faces
from jaxclnf.detect.mtcnn import detect_faces_mtcnn
from jaxclnf.detect.mtcnn_network import PNET_SIDE
from jaxclnf.experts.types import CENExperts
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.pose import Camera
from jaxclnf.openface.csv_table import OpenFaceColumns
from jaxclnf.openface.mtcnn_file import load_mtcnn
from jaxclnf.storage.load import DEFAULT_MODEL, load_model

FaceDetector = Callable[
    [UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]], Float64[np.ndarray, "b 4"]
]
"""From a picture in colour (blue, green, red) and in grey to boxes of faces."""

_HAAR_MIN_FACE, _MTCNN_MIN_FACE, _MAX_DECIMALS = 50, 60, 17
_MISSED = "detector haar", "auto", "openface"  # Other networks were wanted there.
_LARGEST_WINDOW = 99  # Twelve times OpenFace's common ones; nothing stops at more.
_MAX_COUNT = 2**31 - 1  # Steps and passes are counted in 32 bits.
# What OpenFace multiplies its numbers with for convolutional experts.
_CEN_SIGMA, _CEN_REG_FACTOR = 1.5, 0.9

_OF_FIT_OPTIONS = (
    *("starts", "finished_starts", "short_search", "window_sizes", "max_steps"),
    *("max_passes", "pass_tol", "sigma", "reg_factor", "weight_factor"),
)
"""Arguments that are fields of `FitOptions` under the same name."""

_PRESET = "(default: the preset's)"
_Number = Annotated[
    float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=_PRESET)
]
_Integer = Annotated[
    int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_PRESET)
]
_Pixels = Annotated[
    float | None,
    tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: a usual webcam's)"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceSetup:
    """Arguments about faces, for a command to inherit."""

    model: Annotated[
        str,
        tyro.conf.arg(
            metavar="MODEL", help_behavior_hint="(default: the embedded model)"
        ),
    ] = DEFAULT_MODEL
    """An OpenFace main file, an .npz file of jaxclnf,
    the name of an embedded model, or that of a converted
    one of OpenFace's: see jaxclnf models."""
    dialect: Dialect = "converged"
    """converged: fits go on until the landmarks rest;
    openface: OpenFace's numbers, five steps a phase."""
    wild: bool = False
    """Preset for difficult photographs: larger windows,
    landmarks weighted by confidence."""
    starts: Annotated[
        Literal[1, 3, 11] | None,
        tyro.conf.arg(metavar="{1,3,11}", help_behavior_hint=_PRESET),
    ] = None
    """Poses to start from: 1, frontal; 3, a little turned
    to either side too; 11, farther and tilted ones too.
    In the converged dialect only the two likeliest are
    finished, of 11 too: see --finished-starts."""
    finished_starts: _Integer = None
    """How many of the starts, the likeliest after the first
    phase, go on: 2 in the converged dialect, all in the
    openface dialect; --starts 11 --finished-starts 11
    finishes them all."""
    short_search: _Integer = None
    """Steps of a phase in a short search by OpenFace's steps
    that comes first, and whose end is one more start; 0:
    no such search, nor is there one with --starts 1."""
    parts: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = True
    """Leave out the model's parts: eyes and inner face."""
    detector: Literal["auto", "haar", "mtcnn"] = "auto"
    """How faces are found. haar: frontal ones, with
    OpenCV's cascade; mtcnn: turned ones too, with the
    networks of an OpenFace installation; auto: mtcnn in
    the openface dialect where there are networks, or with
    --mtcnn; else haar."""
    mtcnn: Annotated[
        Path | None,
        tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: found)"),
    ] = None
    """MTCNN_detector.txt or its folder. Else it is looked
    for in mtcnn_detector/ beside the model's main file
    and among OpenFace's installed models."""
    min_face: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 50; mtcnn: 60)"),
    ] = None
    """Smallest face that is looked for, pixels."""
    window_sizes: Annotated[
        tuple[int, ...] | None,
        tyro.conf.arg(metavar="INT...", help_behavior_hint=_PRESET),
    ] = None
    """Side of the response maps at each scale, odd; 0 skips the scale."""
    max_steps: _Integer = None
    """Step limit of each phase."""
    max_passes: _Integer = None
    """How often the last scale is run at most, its maps made
    again around the landmarks, until they rest: 1, once."""
    pass_tol: _Number = None
    """How little a pass moves every landmark where they rest, pixels."""
    sigma: _Number = None
    """Bandwidth of the kernel density estimate, reference pixels."""
    reg_factor: _Number = None
    """Weight of the shape prior, px^2, on a face 145 pixels wide."""
    weight_factor: _Number = None
    """Weight of each landmark per unit of its expert's confidence; 0: all weigh 1."""
    fx: _Pixels = None
    """Focal length of the camera along x, pixels."""
    fy: _Pixels = None
    """The same along y."""
    cx: _Pixels = None
    """Optical centre of the camera, x, pixels."""
    cy: _Pixels = None
    """The same, y."""
    columns_2d: bool = False
    """Landmarks in pixels in the table. Without any of
    these --columns all are there, but those of the eyes
    only where the model has eyes."""
    columns_3d: bool = False
    """Landmarks in millimetres, in the camera's frame."""
    columns_pdm: bool = False
    """Parameters of the shape model."""
    columns_pose: bool = False
    """Position and angles of the head."""
    columns_gaze: bool = False
    """Landmarks of the eyes, and gaze, which is not
    estimated and therefore 0."""
    precision: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: OpenFace's)"),
    ] = None
    """Decimals of the numbers in the table."""
    openface_options: Annotated[bool, tyro.conf.Suppress, tyro.conf.Fixed] = False
    """Whether options of OpenFace were among the arguments; no argument itself."""

    def check(self) -> None:
        """Looks at the arguments alone, before anything takes time.

        Raises:
            ArgumentError: A number is out of its range, or arguments contradict each
                other.
        """
        _check_window_sizes(self.window_sizes)
        for name, low, is_allowed in (
            ("min_face", f"1 to {MAX_SIDE}", lambda x: 1 <= x <= MAX_SIDE),
            ("finished_starts", "1 or more", lambda x: x >= 1),
            ("short_search", f"0 to {_MAX_COUNT}", lambda x: 0 <= x <= _MAX_COUNT),
            ("max_steps", f"1 to {_MAX_COUNT}", lambda x: 1 <= x <= _MAX_COUNT),
            ("max_passes", f"1 to {_MAX_COUNT}", lambda x: 1 <= x <= _MAX_COUNT),
            ("pass_tol", "0 or more", lambda x: x >= 0),
            ("sigma", "above 0", lambda x: x > 0),
            ("reg_factor", "0 or more", lambda x: x >= 0),
            ("weight_factor", "0 or more", lambda x: x >= 0),
            ("fx", "above 0", lambda x: x > 0),
            ("fy", "above 0", lambda x: x > 0),
            ("cx", "finite", lambda x: True),
            ("cy", "finite", lambda x: True),
            ("precision", f"0 to {_MAX_DECIMALS}", lambda x: 0 <= x <= _MAX_DECIMALS),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and is_allowed(value)):
                flag = name.replace("_", "-")
                raise ArgumentError(f"--{flag} {value}: must be a number, {low}")
        for one, other in (("fx", "fy"), ("cx", "cy")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ArgumentError(
                    f"--{one} and --{other}: belong together, give both"
                )
        finished = self.finished_starts or 0
        if self.starts is not None and finished > self.starts:
            raise ArgumentError(
                f"--finished-starts {finished}: of {self.starts} starts"
            )
        if self.detector == "haar" and self.mtcnn is not None:
            raise ArgumentError("--mtcnn: has no use with --detector haar")

    def fit_options(self, model: CLNFModel | None = None) -> FitOptions:
        """The preset with what was asked for instead.

        Args:
            model: The model; in the openface dialect convolutional experts have numbers
                of their own.

        Returns:
            The options of a fit that starts from a box.

        Raises:
            ArgumentError: As `check`, or the windows leave no scale of the model.
        """
        self.check()
        experts = () if model is None else model.experts
        preset = self._preset(any(isinstance(e, CENExperts) for e in experts))
        asked = {n: x for n in _OF_FIT_OPTIONS if (x := getattr(self, n)) is not None}
        options = dataclasses.replace(preset, use_parts=self.parts, **asked)
        if experts:
            self._check_scales(options.window_sizes, len(experts))
        return options

    def _check_scales(self, sizes: Sequence[int], count: int) -> None:
        beyond = self.window_sizes is not None and any(sizes[count:])
        some = any(sizes[:count])
        if some and not beyond:
            return
        text = " ".join(map(str, sizes))
        wrong = "has sizes beyond the scales" if some else "skips every scale"
        raise ArgumentError(
            f"--window-sizes {text}: {wrong} of the model, which has {count}"
        )

    def _preset(self, is_cen: bool) -> FitOptions:
        if self.dialect == "converged":
            return FitOptions.wild() if self.wild else FitOptions()
        if not self.wild:
            return FitOptions.openface_cen() if is_cen else FitOptions.openface()
        wild = FitOptions.openface_wild()
        if not is_cen:
            return wild
        return dataclasses.replace(
            wild,
            sigma=_CEN_SIGMA * wild.sigma,
            reg_factor=_CEN_REG_FACTOR * wild.reg_factor,
        )

    def load(self) -> CLNFModel:
        """The model, prepared for `fit_options`.

        Raises:
            ModelFileError: There is no such model, or its files cannot be used.
        """
        model = load_model(self.model)
        return self.prepared(model, self.fit_options(model).window_sizes)

    def say_what_is_used(self, model: CLNFModel) -> None:
        """Says so on the error stream where OpenFace's options meet another model.

        Who uses its options may expect its model too.

        Args:
            model: The model that `load` gave.

        Example:
            >>> FaceSetup().say_what_is_used(model)  # None of its options, no line.
        """
        source, theirs = self._source_of_boxes(), is_of_openface(model)
        if self.openface_options and not theirs:
            say(
                "jaxclnf: options of OpenFace with a model that is not OpenFace's:"
                f" dialect {self.dialect}, model {model.info.name} ({self.model}),"
                f" {source}; --model names another model"
            )
        elif theirs and (source, self.detector, self.dialect) == _MISSED:
            say(
                f"jaxclnf: {source}, as there are no networks of OpenFace's own, whose"
                " boxes differ; --mtcnn PATH names them"
            )

    def _source_of_boxes(self) -> str:
        place = self._find_mtcnn()
        return "detector haar" if place is None else f"detector mtcnn of {place}"

    def prepared(self, model: CLNFModel, *window_sizes: Sequence[int]) -> CLNFModel:
        """A model made ready for some window sizes, in the way of the dialect.

        Args:
            model: The model.
            *window_sizes: As for `CLNFModel.prepared`.

        Returns:
            The model.

        Example:
            >>> FaceSetup().prepared(model, (7,)).experts[0].sigma.keys()
            dict_keys([7])
        """
        whole = self.dialect == "openface"
        return model.prepared(*window_sizes, whole_sigma=whole)

    def face_detector(self, model: CLNFModel) -> FaceDetector:
        """What finds faces for a model.

        Args:
            model: The model, whose box calibration the cascade needs.

        Returns:
            A function from a picture, in colour and in grey, to boxes that are tight
            around the landmarks; no rows where no face is found.

        Raises:
            ArgumentError: There are no networks, or the smallest face is too small for
                them.
            ModelFileError: The networks cannot be used.
        """
        place = self._find_mtcnn()
        if place is None:
            min_size = _HAAR_MIN_FACE if self.min_face is None else self.min_face
            calibration = model.box_calibration
            return lambda bgr, grey: detect_faces(
                grey, calibration=calibration, min_size=min_size
            )
        min_size = _MTCNN_MIN_FACE if self.min_face is None else self.min_face
        if min_size < PNET_SIDE:
            raise ArgumentError(
                f"--min-face {min_size}: must be {PNET_SIDE} or more with mtcnn"
            )
        networks = load_mtcnn(place)
        return lambda bgr, grey: detect_faces_mtcnn(networks, bgr, min_size=min_size)[0]

    def _find_mtcnn(self) -> Path | None:
        """Where the networks are; `None` if they are not to be used."""
        if self.mtcnn is not None:
            return self.mtcnn
        if self.detector == "haar":
            return None
        if self.detector == "auto" and self.dialect == "converged":
            return None
        return find_networks(self.model, required=self.detector == "mtcnn")

    def camera(self, height: int, width: int) -> Camera:
        """The camera of a picture of some size, pixels; guessed where not given."""
        return Camera.for_image(
            height, width, fx=self.fx, fy=self.fy, cx=self.cx, cy=self.cy
        )

    def columns(
        self, model: CLNFModel, form: Literal["photo", "video"]
    ) -> OpenFaceColumns:
        """The columns of a table.

        Args:
            model: The model, which sets the numbers of landmarks and modes, and whether
                there are landmarks of the eyes.
            form: `photo` or `video`, as in `OpenFaceColumns`.

        Returns:
            The columns asked for, or all, as in OpenFace; and ours.
        """
        asked = (
            *(self.columns_2d, self.columns_3d, self.columns_pdm),
            *(self.columns_pose, self.columns_gaze),
        )
        every = not any(asked)
        return OpenFaceColumns(
            form=form,
            gaze=self.columns_gaze or (every and self.parts and has_eyes(model)),
            pose=self.columns_pose or every,
            landmarks_2d=self.columns_2d or every,
            landmarks_3d=self.columns_3d or every,
            pdm_params=self.columns_pdm or every,
            num_landmarks=model.pdm.num_landmarks,
            num_modes=model.pdm.num_modes,
            certified=self.dialect == "converged",
            precision=self.precision,
        )


def _check_window_sizes(sizes: tuple[int, ...] | None) -> None:
    if sizes is not None and (
        not any(sizes)
        or any(size < 0 or (size and size % 2 == 0) for size in sizes)
        or max(sizes) > _LARGEST_WINDOW
    ):
        text = " ".join(map(str, sizes)) or "(none)"
        raise ArgumentError(
            f"--window-sizes {text}: must be odd numbers up to {_LARGEST_WINDOW}, or 0"
            " to skip a scale, and not all 0"
        )
