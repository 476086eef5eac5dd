"""Tables in OpenFace's form: the bytes of its own, and what it does not know."""

import csv
import dataclasses
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxclnf.openface import csv_table
from jaxclnf.openface.csv_table import (
    OpenFaceColumns,
    OpenFaceRow,
    openface_header,
    openface_line,
    write_openface_csv,
)
from jaxclnf.status import Status

SMALL = OpenFaceColumns(num_landmarks=3, num_modes=2, gaze=False)


def make_row(**changed) -> OpenFaceRow:
    values = {
        "frame": 7,
        "face_id": 2,
        "timestamp": 0.2,
        "confidence": 0.975,
        "success": True,
        "pose": np.array([-10.04, 20.06, 400.0, 0.1234, -0.5, 0.0006]),
        "landmarks": np.array([[1.04, 4], [2, 5.06], [3, 6]], np.float32),
        "landmarks_3d": np.arange(9.0).reshape(3, 3),
        "params_global": np.array([1.23456, 0.1, 0.2, 0.3, 190.82, 182.927]),
        "params_local": np.array([-23.4804, 0.0004]),
        "status": Status.MAX_STEPS,
        "steps": 30,
        "log_likelihood": -1.25,
    }
    return OpenFaceRow(**{**values, **changed})


def test_order_and_decimals():
    assert openface_header(SMALL) == (
        "frame, face_id, timestamp, confidence, success, pose_Tx, pose_Ty, pose_Tz,"
        " pose_Rx, pose_Ry, pose_Rz, x_0, x_1, x_2, y_0, y_1, y_2, X_0, X_1, X_2, Y_0,"
        " Y_1, Y_2, Z_0, Z_1, Z_2, p_scale, p_rx, p_ry, p_rz, p_tx, p_ty, p_0, p_1,"
        " status, steps, log_likelihood"
    )
    assert openface_line(SMALL, make_row()) == (
        "7, 2, 0.200, 0.97, 1, -10.0, 20.1, 400.0, 0.123, -0.500, 0.001, 1.0, 2.0, 3.0,"
        " 4.0, 5.1, 6.0, 0.0, 3.0, 6.0, 1.0, 4.0, 7.0, 2.0, 5.0, 8.0, 1.235, 0.100,"
        " 0.200, 0.300, 190.820, 182.927, -23.480, 0.000, MAX_STEPS, 30, -1.250000"
    )


def test_a_certificate_is_the_last_column():
    columns = dataclasses.replace(SMALL, certified=True)
    assert openface_header(columns) == openface_header(SMALL) + ", certified"
    for certified, text in ((True, "1"), (False, "0"), (None, "")):
        row = make_row(certified=certified)
        line = openface_line(SMALL, row)
        assert openface_line(columns, row) == f"{line}, {text}"
    bare = dataclasses.replace(columns, extras=False)
    assert openface_header(bare).endswith("p_1")
    assert openface_line(bare, make_row(certified=True)).endswith("0.000")


def test_photo_form_and_gaze():
    columns = OpenFaceColumns(
        form="photo",
        pose=False,
        landmarks_2d=False,
        landmarks_3d=False,
        pdm_params=False,
        extras=False,
    )
    header = openface_header(columns).split(", ")
    assert header[:4] == ["face", "confidence", "gaze_0_x", "gaze_0_y"]
    assert header[8:11] == ["gaze_angle_x", "gaze_angle_y", "eye_lmk_x_0"]
    assert header[-1] == "eye_lmk_Z_55"
    points = np.arange(112.0).reshape(56, 2), np.arange(168.0).reshape(56, 3)
    row = make_row(eye_landmarks_2d=points[0], eye_landmarks_3d=points[1])
    values = openface_line(columns, row).split(", ")
    assert len(values) == len(header) == 10 + 5 * 56
    assert values[:10] == ["2", "0.975"] + 6 * ["0.000000"] + 2 * ["0.000"]
    assert values[10:12] + values[66:67] == ["0.0", "2.0", "1.0"]
    assert values[122:124] + values[-1:] == ["0.0", "3.0", "167.0"]


def test_more_decimals_everywhere():
    columns = OpenFaceColumns(num_landmarks=3, num_modes=2, gaze=False, precision=9)
    row = make_row(landmarks=np.full((3, 2), 100 / 3, np.float32))
    values = openface_line(columns, row).split(", ")
    assert values[:5] == ["7", "2", "0.200000000", "0.975000000", "1"]
    assert np.float32(values[11]) == np.float32(100 / 3)
    assert values[5:7] == ["-10.040000000", "20.060000000"]
    assert values[-3:] == ["MAX_STEPS", "30", "-1.250000000"]


@pytest.mark.parametrize("form", ["photo", "video"])
def test_failed_rows_stay_and_are_zero(form):
    columns = OpenFaceColumns(form=form, num_landmarks=3, num_modes=2)
    nothing = OpenFaceRow(frame=4, face_id=1, timestamp=0.1)
    broken = OpenFaceRow(
        frame=4,
        face_id=1,
        timestamp=0.1,
        confidence=np.nan,
        pose=np.full(6, np.nan),
        landmarks=np.full((3, 2), np.inf),
        log_likelihood=np.nan,
    )
    line = openface_line(columns, nothing)
    assert openface_line(columns, broken) == line
    values = dict(
        zip(openface_header(columns).split(", "), line.split(", "), strict=True)
    )
    if form == "video":
        known = {"frame": "4", "face_id": "1", "timestamp": "0.100", "success": "0"}
    else:
        known = {"face": "1"}
    assert {name: values.pop(name) for name in known} == known
    assert [values.pop(k) for k in ("status", "steps", "log_likelihood")] == [
        "",
        "",
        "",
    ]
    assert {float(value) for value in values.values()} == {0.0}


def test_tables_are_read_by_common_readers(tmp_path):
    rows = [make_row(), OpenFaceRow(frame=8, status=Status.BAD_START, steps=0)]
    write_openface_csv(tmp_path / "a.csv", SMALL, iter(rows))
    with (tmp_path / "a.csv").open(newline="") as file:
        first, second = csv.DictReader(file, skipinitialspace=True)
    assert first["x_1"] == "2.0" and first["status"] == "MAX_STEPS"
    assert second["status"] == "BAD_START" and second["log_likelihood"] == ""
    assert second["success"] == "0"


def test_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("old")

    def rows(num):
        yield from (make_row(frame=i) for i in range(num))
        raise RuntimeError("the video is damaged")

    with pytest.raises(RuntimeError, match="damaged"):
        write_openface_csv(file, SMALL, rows(3))
    assert file.read_text() == "old"
    wrong = make_row(params_local=np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.csv, row 2: params_local has shape"):
        write_openface_csv(file, SMALL, [make_row(), wrong])
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.csv"]
    write_openface_csv(file, SMALL, [])
    assert file.read_bytes() == openface_header(SMALL).encode() + b"\n"
    with pytest.raises(OSError):
        write_openface_csv(tmp_path / "no" / "a.csv", SMALL, [])


def test_rows_so_far_can_be_kept(tmp_path):
    file, kept = tmp_path / "a.csv", tmp_path / "a.partial.csv"
    file.write_text("old")

    def rows(num, error):
        yield from (make_row(frame=i) for i in range(num))
        raise error

    for num, error in ((1, KeyboardInterrupt()), (300, RuntimeError("no memory"))):
        with pytest.raises(type(error)):
            write_openface_csv(file, SMALL, rows(num, error), partial=kept)
        lines = [openface_line(SMALL, make_row(frame=i)) for i in range(num)]
        text = "\n".join([openface_header(SMALL), *lines, ""])
        assert kept.read_text() == text
        (note,) = error.__notes__
        assert note.startswith(f"{kept} has the first {num} row")
    kept.unlink()
    # Without rows there is nothing to keep.
    with pytest.raises(KeyboardInterrupt) as caught:
        write_openface_csv(file, SMALL, rows(0, KeyboardInterrupt()), partial=kept)
    assert not hasattr(caught.value, "__notes__")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.csv"]
    # The name is taken by a folder: all rows are kept under the other.
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(OSError):
        write_openface_csv(tmp_path / "b.csv", SMALL, [make_row()] * 2, partial=kept)
    assert len(kept.read_text().splitlines()) == 3


def test_half_a_row_is_not_kept(tmp_path):
    """As on a disk that became full in the midst of it."""
    kept = tmp_path / "a.partial.csv"

    def rows():
        yield from [make_row()] * 300
        (temporary,) = tmp_path.glob(".jaxclnf-*")
        (tmp_path / "then").write_text(temporary.read_text()[:-5])
        raise OSError(errno.ENOSPC, "No space left on device")

    def keeps_what_was_written(temporary, partial, error):
        shutil.copy(tmp_path / "then", temporary)
        keep(temporary, partial, error)

    keep = csv_table._keep_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_table, "_keep_rows", keeps_what_was_written)
        with pytest.raises(OSError):
            write_openface_csv(tmp_path / "a.csv", SMALL, rows(), partial=kept)
    header, *lines = kept.read_text().split("\n")
    assert header == openface_header(SMALL) and lines.pop() == ""
    assert 1 < len(lines) < 300 and set(lines) == {openface_line(SMALL, make_row())}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"landmarks": np.zeros((4, 2)), "landmarks_3d": None},
            r"landmarks has shape \(4, 2\); expected \(3, 2\)",
        ),
        (
            {"landmarks": None, "landmarks_3d": np.zeros((2, 3))},
            r"landmarks_3d has shape \(2, 3\); expected \(3, 3\)",
        ),
        (
            {"params_local": np.zeros(34)},
            r"params_local has shape \(34,\); expected \(2,\)",
        ),
    ],
)
def test_sizes_of_another_model_are_named(changed, problem):
    with pytest.raises(ValueError, match=problem):
        openface_line(SMALL, make_row(**changed))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pose", np.zeros(5)),
        ("params_global", np.zeros(5)),
        ("eye_landmarks_2d", np.zeros((28, 2))),
        ("eye_landmarks_3d", np.zeros((56, 2))),
    ],
)
def test_impossible_sizes_are_named(name, value):
    columns = OpenFaceColumns(num_landmarks=3, num_modes=2)
    row = make_row()
    object.__setattr__(row, name, value)  # unseen by the checks of the tests' own run
    with pytest.raises(ValueError, match=f"{name} has shape"):
        openface_line(columns, row)


FILES = {
    "FaceLandmarkImg_sample1.csv": OpenFaceColumns(form="photo", extras=False),
    "FaceLandmarkImg_sample1_nogaze.csv": OpenFaceColumns(
        form="photo", gaze=False, extras=False
    ),
    "FeatureExtraction_default.csv": OpenFaceColumns(extras=False),
}


def row_of(values: dict[str, str]) -> OpenFaceRow:
    """A row from its own printed numbers."""

    def array(*stems: str) -> np.ndarray | None:
        found = [[float(values[k]) for k in numbered(stem)] for stem in stems]
        return np.array(found).T if found[0] else None

    def numbered(stem: str) -> list[str]:
        names = (f"{stem}_{i}" for i in range(len(values)))
        return [name for name in names if name in values]

    def vector(names: str) -> np.ndarray:
        return np.array([float(values[name]) for name in names.split()])

    modes = array("p")
    assert modes is not None
    return OpenFaceRow(
        frame=int(values.get("frame", 0)),
        face_id=int(values.get("face_id") or values["face"]),
        timestamp=float(values.get("timestamp", 0)),
        confidence=float(values["confidence"]),
        success=values.get("success") == "1",
        eye_landmarks_2d=array("eye_lmk_x", "eye_lmk_y"),
        eye_landmarks_3d=array("eye_lmk_X", "eye_lmk_Y", "eye_lmk_Z"),
        pose=vector("pose_Tx pose_Ty pose_Tz pose_Rx pose_Ry pose_Rz"),
        landmarks=array("x", "y"),
        landmarks_3d=array("X", "Y", "Z"),
        params_global=vector("p_scale p_rx p_ry p_rz p_tx p_ty"),
        params_local=modes[:, 0],
    )


@pytest.mark.shared
@pytest.mark.parametrize("name", FILES)
def test_same_bytes_as_openface(name, golden: Path, tmp_path):
    text = (golden / name).read_text()
    header, *lines = text.splitlines()
    names = header.split(", ")
    rows = [row_of(dict(zip(names, line.split(", "), strict=True))) for line in lines]
    write_openface_csv(tmp_path / "a.csv", FILES[name], rows)
    assert (tmp_path / "a.csv").read_bytes() == (golden / name).read_bytes()


@pytest.mark.shared
def test_same_bytes_from_the_numbers_before_printing(golden: Path):
    """The first frames of the video, from the float32 arrays that were printed."""
    lines = (golden / "FeatureExtraction_default.csv").read_text().splitlines()
    columns = FILES["FeatureExtraction_default.csv"]
    names = lines[0].split(", ")
    with np.load(golden / "video_clnf_general.npz") as file:
        arrays = dict(file)
    for i, line in enumerate(lines[1:]):
        printed = row_of(dict(zip(names, line.split(", "), strict=True)))
        row = OpenFaceRow(
            frame=i + 1,
            timestamp=i / 15,
            confidence=float(arrays["certainty"][i]),
            success=bool(arrays["success"][i]),
            eye_landmarks_2d=arrays["eye_landmarks_2d"][i],
            eye_landmarks_3d=printed.eye_landmarks_3d,
            pose=arrays["pose"][i],
            landmarks=arrays["landmarks"][i],
            landmarks_3d=arrays["shape3d_camera"][i].T,
            params_global=arrays["params_global"][i],
            params_local=arrays["params_local"][i],
        )
        assert openface_line(columns, row) == line
