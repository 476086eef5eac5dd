"""Tables as OpenFace writes them: its columns, their order, its decimals.

Fields are separated by a comma and a space, lines end with a line feed. Three of our
own columns, `status`, `steps` and `log_likelihood`, can follow at the end, and after
them `certified`; without them, and with OpenFace's decimals, the same numbers make the
same bytes.

Missing values: every face or frame has its row. What is missing there, or is not
finite, is written as 0, as in OpenFace's frames without a face; `success` 0, or
`confidence` 0 in the photo form, tells such rows apart, and so does `status`. In our
own columns a missing value is left empty.
"""

import contextlib
import dataclasses
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxclnf.status import Status

_SEPARATOR = ", "
_NUM_EYE_LANDMARKS = 56
_EXTRAS = ("status", "steps", "log_likelihood")
_LOG_LIKELIHOOD_DECIMALS = 6


@dataclasses.dataclass(frozen=True)
class OpenFaceColumns:
    """Which columns a table has, and how many decimals. OpenFace writes all groups
    unless some are asked for."""

    form: Literal["photo", "video"] = "video"
    """`photo`: one row per face, as FaceLandmarkImg writes it. `video`: one row per
    face and frame, as FeatureExtraction and FaceLandmarkVidMulti write it."""
    gaze: bool = True
    """OpenFace's `-gaze`: gaze, which is not estimated here and therefore 0, and the
    landmarks of the eyes, left then right."""
    pose: bool = True
    """OpenFace's `-pose`."""
    landmarks_2d: bool = True
    """OpenFace's `-2Dfp`."""
    landmarks_3d: bool = True
    """OpenFace's `-3Dfp`."""
    pdm_params: bool = True
    """OpenFace's `-pdmparams`."""
    num_landmarks: int = 68
    """Landmarks of the model."""
    num_modes: int = 34
    """Modes of the model."""
    extras: bool = True
    """Whether our own columns follow at the end."""
    certified: bool = False
    """Whether `certified` is one of them; OpenFace's steps are never certified."""
    precision: int | None = None
    """Decimals of every number that is no count; OpenFace's if not given: 1 for what is
    in pixels or millimetres, 3 for angles, model parameters and seconds, 6 for gaze,
    and for the confidence 3 in the photo form, 2 in the other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenFaceRow:
    """What is known of one face; None where it is not known."""

    frame: int = 0
    """Number of the frame; OpenFace counts from 1. Not in the photo form."""
    face_id: int = 0
    """Number of the face, from 0."""
    timestamp: float = 0.0
    """Time of the frame, seconds. Not in the photo form."""
    confidence: float | None = None
    """How sure it is that the landmarks are right, 0 to 1."""
    success: bool = False
    """Whether the face was found and followed. Not in the photo form."""
    eye_landmarks_2d: Float[np.ndarray, "56 2"] | None = None
    """Landmarks of the left eye, then the right, pixels."""
    eye_landmarks_3d: Float[np.ndarray, "56 3"] | None = None
    """The same in the camera's frame, millimetres."""
    pose: Float[np.ndarray, " 6"] | None = None
    """`(Tx, Ty, Tz, rx, ry, rz)`, millimetres and radians."""
    landmarks: Float[np.ndarray, "n 2"] | None = None
    """Landmarks, pixels."""
    landmarks_3d: Float[np.ndarray, "n 3"] | None = None
    """Landmarks in the camera's frame, millimetres."""
    params_global: Float[np.ndarray, " 6"] | None = None
    """Scale, pitch, yaw, roll, translation x and y; radians and pixels."""
    params_local: Float[np.ndarray, " m"] | None = None
    """Weights of the modes."""
    status: Status | None = None
    """How the fit ended."""
    steps: int | None = None
    """Steps of all phases together."""
    log_likelihood: float | None = None
    """Of the fit, mean over the landmarks."""
    certified: bool | None = None
    """Whether every phase of the fit ended at an optimum."""


def openface_header(columns: OpenFaceColumns) -> str:
    """The first line of a table, without its end.

    Args:
        columns: Which columns it has.

    Returns:
        Their names.

    Mirrors:
        RecorderCSV::Open.

    Example:
        >>> columns = OpenFaceColumns(
        ...     form="photo", gaze=False, landmarks_2d=False, landmarks_3d=False,
        ...     pdm_params=False,
        ... )
        >>> openface_header(columns)[:44]
        'face, confidence, pose_Tx, pose_Ty, pose_Tz,'
    """
    return _SEPARATOR.join(_names(columns))


def openface_line(columns: OpenFaceColumns, row: OpenFaceRow) -> str:
    """One line of a table, without its end.

    Args:
        columns: Which columns the table has.
        row: The face.

    Returns:
        Its values.

    Raises:
        ValueError: An array is not of the size that the columns need.

    Mirrors:
        RecorderCSV::WriteLine.

    Example:
        >>> columns = OpenFaceColumns(
        ...     gaze=False, landmarks_2d=False, landmarks_3d=False, pdm_params=False
        ... )
        >>> pose = np.asarray([1.0, -2.0, 600.0, 0.1, 0.2, 0.3])
        >>> row = OpenFaceRow(
        ...     frame=1, confidence=0.98, success=True, pose=pose, steps=21
        ... )
        >>> openface_line(columns, row)
        '1, 0, 0.000, 0.98, 1, 1.0, -2.0, 600.0, 0.100, 0.200, 0.300, , 21, '
    """
    return _SEPARATOR.join(_values(columns, row))


def write_openface_csv(
    path: str | os.PathLike[str],
    columns: OpenFaceColumns,
    rows: Iterable[OpenFaceRow],
    *,
    partial: str | os.PathLike[str] | None = None,
) -> None:
    """Writes a table, whole or not at all.

    Rows are written as they come, to a temporary file beside it that takes its name at
    the end. If that end is not reached, for an error in `rows` too, nothing is left, or
    what there is goes to `partial`.

    Args:
        path: Where to; a file already there is replaced.
        columns: Which columns it has.
        rows: The faces; may be none.
        partial: Where whole rows go, if there are some, when an exception ends it, an
            interrupt too; the exception gets a note that says so. Beside `path`.

    Raises:
        ValueError: An array is not of the size that the columns need; the message names
            the row.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.csv")
        ...     write_openface_csv(file, OpenFaceColumns(), [OpenFaceRow(frame=1)])
        ...     len(file.read_text().splitlines())
        2
    """
    path = Path(path)
    temporary = path.with_name(f".jaxclnf-{uuid.uuid4().hex}.part")
    try:
        with temporary.open("x", encoding="ascii", newline="\n") as file:
            file.write(openface_header(columns) + "\n")
            for number, row in enumerate(rows, start=1):
                try:
                    line = openface_line(columns, row)
                except ValueError as error:
                    raise ValueError(f"{path}, row {number}: {error}") from error
                file.write(line + "\n")
        os.replace(temporary, path)
    except BaseException as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                _keep_rows(temporary, Path(partial), error)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _keep_rows(temporary: Path, partial: Path, error: BaseException) -> None:
    with temporary.open("rb+") as file:
        lines = file.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            file.truncate(sum(map(len, lines[:-1])))
            del lines[-1]
    if len(lines) > 1:
        os.replace(temporary, partial)
        rows = "row" if len(lines) == 2 else "rows"
        error.add_note(f"{partial} has the first {len(lines) - 1} {rows}")


def _names(columns: OpenFaceColumns) -> Iterator[str]:
    if columns.form == "photo":
        yield from ("face", "confidence")
    else:
        yield from ("frame", "face_id", "timestamp", "confidence", "success")
    if columns.gaze:
        yield from (f"gaze_{eye}_{axis}" for eye in "01" for axis in "xyz")
        yield from ("gaze_angle_x", "gaze_angle_y")
        yield from _numbered("eye_lmk_x eye_lmk_y", _NUM_EYE_LANDMARKS)
        yield from _numbered("eye_lmk_X eye_lmk_Y eye_lmk_Z", _NUM_EYE_LANDMARKS)
    if columns.pose:
        yield from (f"pose_{kind}{axis}" for kind in "TR" for axis in "xyz")
    if columns.landmarks_2d:
        yield from _numbered("x y", columns.num_landmarks)
    if columns.landmarks_3d:
        yield from _numbered("X Y Z", columns.num_landmarks)
    if columns.pdm_params:
        yield from ("p_scale", "p_rx", "p_ry", "p_rz", "p_tx", "p_ty")
        yield from _numbered("p", columns.num_modes)
    if columns.extras:
        yield from _EXTRAS
        yield from ["certified"] * columns.certified


def _numbered(stems: str, num: int) -> Iterator[str]:
    for stem in stems.split():
        yield from (f"{stem}_{i}" for i in range(num))


def _values(columns: OpenFaceColumns, row: OpenFaceRow) -> Iterator[str]:
    def number(value: float | None, decimals: int) -> str:
        kept = value if value is not None and math.isfinite(value) else 0.0
        places = decimals if columns.precision is None else columns.precision
        return f"{kept:.{places}f}"

    def array(
        name: str, value: np.ndarray | None, shape: tuple[int, ...], decimals: int
    ) -> Iterator[str]:
        if value is None:
            value = np.zeros(shape)
        if value.shape != shape:
            raise ValueError(f"{name} has shape {value.shape}; expected {shape}")
        # All x, then all y.
        return (number(float(x), decimals) for x in value.T.ravel())

    if columns.form == "photo":
        yield str(row.face_id)
        yield number(row.confidence, 3)
    else:
        yield from (str(row.frame), str(row.face_id), number(row.timestamp, 3))
        yield from (number(row.confidence, 2), str(int(row.success)))
    n = columns.num_landmarks
    if columns.gaze:
        yield from [number(0.0, 6)] * 6
        yield from [number(0.0, 3)] * 2
        eyes = _NUM_EYE_LANDMARKS
        yield from array("eye_landmarks_2d", row.eye_landmarks_2d, (eyes, 2), 1)
        yield from array("eye_landmarks_3d", row.eye_landmarks_3d, (eyes, 3), 1)
    if columns.pose:
        first, last = (None, None) if row.pose is None else (row.pose[:3], row.pose[3:])
        yield from array("position in pose", first, (3,), 1)
        yield from array("angles in pose", last, (3,), 3)
    if columns.landmarks_2d:
        yield from array("landmarks", row.landmarks, (n, 2), 1)
    if columns.landmarks_3d:
        yield from array("landmarks_3d", row.landmarks_3d, (n, 3), 1)
    if columns.pdm_params:
        yield from array("params_global", row.params_global, (6,), 3)
        yield from array("params_local", row.params_local, (columns.num_modes,), 3)
    if columns.extras:
        likelihood = row.log_likelihood
        known = likelihood is not None and math.isfinite(likelihood)
        yield "" if row.status is None else row.status.name
        yield "" if row.steps is None else str(row.steps)
        yield number(likelihood, _LOG_LIKELIHOOD_DECIMALS) if known else ""
        if columns.certified:
            yield "" if row.certified is None else str(int(row.certified))
