"""Reading labelled photographs for training, and finding all that is wrong there."""

import dataclasses
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.app.errors import ArgumentError, DataError, TableError
from jaxclnf.app.media import write_png
from jaxclnf.app.train_config import DataSource
from jaxclnf.app.train_data import DataReport, read_training_faces
from jaxclnf.learn.faces import LabelledFaces
from jaxclnf.learn.masking import floor_spread, mask_far_outline
from jaxclnf.shape.rotation import matrix_from_euler

FACE = np.array([[40.0, 50.0], [80.0, 52.0], [60.0, 90.0], [58.5, 66.0]])
SIZE = (130, 120)
"""Height and width of the photographs."""


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grey = cv2.GaussianBlur(rng.integers(0, 256, size, np.uint8), (0, 0), 4)
    write_png(path, cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    return grey


def pts(path: Path, points: np.ndarray) -> None:
    lines = "\n".join(f"{x} {y}" for x, y in points)
    path.write_text(f"version: 1\nn_points: {len(points)}\n{{\n{lines}\n}}\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs with `.pts` files."""
    for i, name in enumerate("abc"):
        photograph(tmp_path / f"{name}.png", i)
        pts(tmp_path / f"{name}.pts", FACE + i)
    return tmp_path


def arrays(folder: Path, **changed: np.ndarray) -> DataSource:
    """The same labels as one `.npz` file."""
    content = {
        "names": np.array(["a.png", "b.png", "c.png"]),
        "landmarks": np.stack([FACE, FACE + 1, FACE + 2]).astype(np.float32),
        "spread": np.arange(12.0).reshape(3, 4),
        "use": np.array([True, False, True]),
    }
    np.savez(folder / "labels.npz", allow_pickle=False, **{**content, **changed})  # pyright: ignore[reportArgumentType]
    return DataSource(folder, folder / "labels.npz", spread_key="spread")


def refused(*sources: DataSource) -> str:
    """The message of the error that reading must end in."""
    with pytest.raises(DataError) as caught:
        read_training_faces(sources)
    return str(caught.value)


def test_files_as_other_systems_leave_them(folder: Path):
    (folder / "a.pts").write_bytes(b"\xef\xbb\xbf" + (folder / "a.pts").read_bytes())
    for suffix in ("png", "pts"):  # macOS
        (folder / f"._a.{suffix}").write_bytes(b"\0\5\x16\7")
    faces, _ = read_training_faces([DataSource(folder)])
    assert len(faces.names) == 3


def test_pts_files(folder: Path):
    faces, report = read_training_faces([DataSource(folder)])
    assert faces.names == ("a.png", "b.png", "c.png")
    assert report == DataReport((3,), (0,), ())
    grey = photograph(folder / "a.png", 0)
    # The face is 40 pixels large; 20 more are kept around it.
    np.testing.assert_array_equal(faces.images[0], grey[30:111, 20:101])
    np.testing.assert_array_equal(faces.landmarks[0], FACE - [20, 30])
    np.testing.assert_array_equal(faces.spread, np.zeros((3, 4)))
    assert all(image.base is None for image in faces.images)


def test_npz_labels_with_spread_and_choice(folder: Path):
    source = dataclasses.replace(arrays(folder), use_key="use", prefix="set/")
    faces, report = read_training_faces([source])
    assert faces.names == ("set/a.png", "set/c.png")
    assert (report.num_used, report.num_unwanted) == ((2,), (1,))
    assert report.summary == "2 faces, 1 marked as not to be used, 0 problems"
    np.testing.assert_array_equal(faces.spread, [[0, 1, 2, 3], [8, 9, 10, 11]])
    percent = dataclasses.replace(
        source, spread_unit="percent_interocular", eye_corners=(0, 1)
    )
    in_percent, _ = read_training_faces([percent])
    unit = np.hypot(40, 2) / 100
    np.testing.assert_allclose(in_percent.spread, unit * faces.spread, rtol=1e-6)
    np.testing.assert_array_equal(in_percent.landmarks, faces.landmarks)


def test_unknown_labels_have_infinite_spread(folder: Path):
    labels = np.stack([np.concatenate([FACE, FACE.mean(axis=0)[None]])] * 3)
    labels[1, 2] = np.nan
    spread = np.zeros((3, 5))
    spread[1, 2] = np.inf
    faces, _ = read_training_faces([arrays(folder, landmarks=labels, spread=spread)])
    np.testing.assert_array_equal(faces.landmarks[1, 2], [0, 0])
    np.testing.assert_array_equal(faces.spread, spread)
    assert np.all(np.isfinite(faces.landmarks))


@pytest.mark.parametrize("factor", [2.0, 2.7])
def test_large_faces_are_shrunk_with_their_labels(tmp_path: Path, factor: float):
    size = (round(130 * factor), round(120 * factor))
    grey = np.zeros(size, np.uint8)
    points = np.rint(FACE * factor)
    for x, y in points.astype(int):
        # An odd disc, whose centre of mass is where the label is.
        cv2.circle(grey, (int(x), int(y)), 7, 255, -1)
    write_png(tmp_path / "a.png", cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    pts(tmp_path / "a.pts", points)
    np.savez(
        tmp_path / "labels.npz",
        names=np.array(["a.png"]),
        landmarks=points[None],
        spread=np.full((1, 4), 3.0),
    )
    source = DataSource(tmp_path, tmp_path / "labels.npz", spread_key="spread")
    faces, _ = read_training_faces([source], max_face_px=40.0)
    labels, image = faces.landmarks[0], faces.images[0].astype(float)
    assert np.ptp(labels, axis=0).max() == pytest.approx(40, abs=0.3)
    np.testing.assert_allclose(faces.spread, 3 / factor, rtol=0.02)
    rows, columns = np.indices(image.shape)
    for x, y in labels:
        near = np.hypot(columns - x, rows - y) < 6
        weight = image * near
        found = [(weight * columns).sum(), (weight * rows).sum()] / weight.sum()
        np.testing.assert_allclose(found, [x, y], atol=0.05)


def test_cuts_end_at_the_picture(tmp_path: Path):
    photograph(tmp_path / "a.png", size=(60, 50))
    pts(tmp_path / "a.pts", FACE - [40, 50])
    faces, _ = read_training_faces([DataSource(tmp_path)])
    assert faces.images[0].shape == (60, 50)
    np.testing.assert_array_equal(faces.landmarks[0], FACE - [40, 50])


def test_every_problem_is_listed_at_once(folder: Path):
    for name in "defghij":
        photograph(folder / f"{name}.png")
        pts(folder / f"{name}.pts", FACE)
    (folder / "d.png").write_bytes(b"no picture")
    pts(folder / "e.pts", FACE[:3])
    pts(folder / "f.pts", np.where(FACE == 90, np.nan, FACE))
    pts(folder / "g.pts", FACE + 500)
    pts(folder / "h.pts", np.full_like(FACE, 50))
    pts(folder / "i.pts", FACE / 10)
    (folder / "j.pts").write_text("no points")
    photograph(folder / "k.PNG")
    pts(folder / "l.pts", FACE)
    source = DataSource(folder)
    message = refused(source)
    first, *lines = message.splitlines()
    assert first == "training data: 9 problems; --keep-going trains without them"
    for line, (file, problem) in zip(
        sorted(lines),
        [
            ("d.png", "not an image"),
            ("e.png", "3 landmarks, expected 4"),
            ("f.png", "no numbers (1 of 4, the first (60.0, nan) at landmark 2)"),
            ("g.png", "from (540, 550) to (580, 590), far outside"),
            ("h.png", "all labels at one place"),
            ("i.png", "a face of 4.0 x 4.0 pixels"),
            ("j.pts", "found no points"),
            ("k.PNG", "found no labels"),
            ("l.pts", "found no photograph"),
        ],
        strict=True,
    ):
        assert line.startswith(f"  {folder / file}: ") and problem in line
    faces, report = read_training_faces([source], keep_going=True)
    assert faces.names == ("a.png", "b.png", "c.png")
    assert report.num_used == (3,) and len(report.problems) == 9
    assert report.summary.endswith("9 problems")


def test_long_lists_are_cut(folder: Path):
    for i in range(25):
        (folder / f"x{i:02}.jpg").write_bytes(b"")
    lines = refused(DataSource(folder)).splitlines()
    assert len(lines) == 22 and lines[-1] == "  and 5 more"


def test_names_must_differ(folder: Path):
    source = DataSource(folder)
    assert "second face named 'a.png'" in refused(source, source)
    assert "second face" in refused(
        arrays(folder, names=np.array(["a.png", "b.png", "a.png"]))
    )
    faces, report = read_training_faces([source, source], keep_going=True)
    assert len(faces) == 3 and report.num_used == (3, 0)
    other = folder / "other"
    other.mkdir()
    write_png(other / "a.png", np.zeros((90, 80, 3), np.uint8))
    (other / "a.pts").write_bytes((folder / "a.pts").read_bytes())
    both, _ = read_training_faces([source, DataSource(other, prefix="other/")])
    assert both.names == ("a.png", "b.png", "c.png", "other/a.png")


def test_a_face_is_learnt_once(folder: Path):
    """Else a copy of what was learnt could be held out to check it."""
    for kind in ("png", "pts"):
        (folder / f"copy.{kind}").write_bytes((folder / f"b.{kind}").read_bytes())
    message = refused(DataSource(folder))
    assert f"copy.png: found the same face as in {folder / 'b.png'}, exp" in message
    faces, _ = read_training_faces([DataSource(folder)], keep_going=True)
    assert faces.names == ("a.png", "b.png", "c.png")


def test_labels_belong_to_one_photograph(folder: Path):
    (folder / "b.jpg").write_bytes((folder / "b.png").read_bytes())
    assert refused(DataSource(folder)).splitlines()[1:] == [
        f"  {folder / 'b.pts'}: found b.jpg, b.png beside it, expected one photograph"
        " of that name"
    ]


def test_photographs_and_labels_must_match(folder: Path):
    names = np.array(["a.png", "b.png", "z.png"])
    message = refused(arrays(folder, names=names))
    assert "c.png: found no labels" in message and "z.png: no such file" in message


@pytest.mark.parametrize("spread", [-1.0, np.nan])
def test_spread_must_be_a_spread(folder: Path, spread: float):
    bad = np.zeros((3, 4))
    bad[2, 1] = spread
    message = refused(arrays(folder, spread=bad))
    assert f"c.png: found spread {spread} at landmark 1" in message
    none = np.zeros((3, 4))
    none[0] = np.inf
    message = refused(arrays(folder, spread=none))
    assert "a.png: found 0 labels that are known, expected at least 4" in message


def test_spread_in_percent_needs_both_eye_corners(folder: Path):
    labels, spread = np.stack([FACE] * 3), np.zeros((3, 4))
    labels[1, 0], spread[1, 0] = 0.0, np.inf
    source = dataclasses.replace(
        arrays(folder, landmarks=labels, spread=spread),
        spread_unit="percent_interocular",
        eye_corners=(1, 0),
    )
    message = refused(source)
    assert "b.png: found no eye corner 0, expected it: spread is in perc" in message
    faces, report = read_training_faces([source], keep_going=True)
    assert faces.names == ("a.png", "c.png") and len(report.problems) == 1


def test_nothing_to_train_with(tmp_path: Path):
    assert "found no photographs (.jpg" in refused(DataSource(tmp_path))
    with pytest.raises(DataError, match="no face is left"):
        read_training_faces([DataSource(tmp_path)], keep_going=True)
    with pytest.raises(DataError, match="no face is left"):
        read_training_faces([])
    with pytest.raises(ArgumentError, match="gone: found no such folder"):
        read_training_faces([DataSource(tmp_path / "gone")])


def test_the_number_of_landmarks_may_be_given(folder: Path):
    with pytest.raises(DataError, match="4 landmarks, expected 68"):
        read_training_faces([DataSource(folder)], num_landmarks=68)


@pytest.mark.parametrize(
    "key, value, problem",
    [
        ("names", np.arange(3), "'names' with int64"),
        ("names", np.array(["a.png"]), r"shape \(1,\)"),
        ("landmarks", np.zeros((3, 8)), r"shape \(3, 8\)"),
        ("landmarks", np.zeros((3, 4, 3)), r"shape \(3, 4, 3\)"),
        ("spread", np.zeros((3, 5)), r"'spread' .* \(f, n\)"),
        ("use", np.ones(3), "'use' with float64.* expected bool"),
    ],
)
def test_arrays_that_do_not_fit(
    folder: Path, key: str, value: np.ndarray, problem: str
):
    source = dataclasses.replace(arrays(folder, **{key: value}), use_key="use")
    with pytest.raises(TableError, match=f"labels.npz: found .*{problem}"):
        read_training_faces([source], keep_going=True)


def test_label_files_that_are_none(folder: Path):
    source = arrays(folder)
    with pytest.raises(ArgumentError, match="no array 'pts', only names, landmarks"):
        read_training_faces([dataclasses.replace(source, landmarks_key="pts")])
    percent = dataclasses.replace(source, spread_unit="percent_interocular")
    with pytest.raises(ArgumentError, match="4 landmarks and no `eye_corners`, expect"):
        read_training_faces([percent])
    percent = dataclasses.replace(percent, eye_corners=(0, 4))
    with pytest.raises(
        ArgumentError, match="4 landmarks, expected the eye corners 0 a"
    ):
        read_training_faces([percent])
    whole = (folder / "labels.npz").read_bytes()
    objects = folder / "objects.npz"
    np.savez(objects, names=np.array([{}], object), landmarks=np.zeros((1, 4, 2)))
    np.save(folder / "plain.npy", np.zeros(3))
    for data in (
        b"",
        b"text",
        whole[:300],
        objects.read_bytes(),
        (folder / "plain.npy").read_bytes(),
    ):
        (folder / "labels.npz").write_bytes(data)
        with pytest.raises(TableError, match="npz: is (no|a damaged) .npz file"):
            read_training_faces([source])
    (folder / "labels.npz").unlink()
    with pytest.raises(ArgumentError, match="no such file of labels"):
        read_training_faces([source])


# Masking.


def labelled(num_faces: int, num_landmarks: int) -> LabelledFaces:
    return LabelledFaces(
        names=tuple(map(str, range(num_faces))),
        images=(np.zeros((9, 9), np.uint8),) * num_faces,
        landmarks=np.ones((num_faces, num_landmarks, 2)),
        spread=np.ones((num_faces, num_landmarks)),
    )


def test_the_far_half_is_the_one_that_turns_away():
    """A face of an arc from ear to ear; z grows away from the camera."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 7)
    arc = np.stack([np.sin(angle), 0 * angle, 1 - np.cos(angle)], axis=1)
    yaw = np.array([0.5, -0.5, 0.3, -0.3, np.nan])
    masked = mask_far_outline(labelled(5, 9), yaw, range(1, 8), limit=0.4)
    for i in range(2):
        turned = arc @ np.asarray(matrix_from_euler(jnp.array([0.0, yaw[i], 0.0]))).T
        half = masked.spread[i, 1:8] == np.inf
        np.testing.assert_array_equal(np.flatnonzero(half), [[0, 1, 2], [4, 5, 6]][i])
        assert turned[half, 2].mean() > turned[~half, 2].mean() + 0.3
    assert np.all(masked.spread[2:] == 1) and np.all(masked.spread[:, [0, 8]] == 1)
    assert np.all(masked.landmarks == 1)


def test_masking_nothing_and_masking_wrongly():
    faces = labelled(2, 4)
    yaw = np.array([1.0, -1.0])
    assert np.all(mask_far_outline(faces, yaw, (), limit=0.1).spread == 1)
    masked = mask_far_outline(faces, yaw, (0, 1, 2, 3), limit=0.1)
    np.testing.assert_array_equal(np.isinf(masked.spread), [[1, 1, 0, 0], [0, 0, 1, 1]])
    assert np.all(faces.spread == 1)
    with pytest.raises(ValueError, match="outline landmarks"):
        mask_far_outline(faces, yaw, (3, 4), limit=0.1)
    with pytest.raises(ValueError, match="for 2 faces"):
        mask_far_outline(faces, yaw[:1], (0, 1), limit=0.1)


def test_no_label_is_too_exact():
    points = np.zeros((3, 3, 2))
    points[0] = [[0, 0], [50, 20], [400, 400]]
    points[1] = [[10, 10], [20, 210], [10, 10]]
    spread = np.array([[0.0, 9, np.inf], [0, 1, 3], [np.inf] * 3])
    faces = dataclasses.replace(labelled(3, 3), landmarks=points, spread=spread)
    floored = floor_spread(faces, 1.0)
    np.testing.assert_array_equal(
        floored.spread, [[0.5, 9, np.inf], [2, 2, 3], [np.inf] * 3]
    )
    np.testing.assert_array_equal(floor_spread(faces, 0.0).spread, spread)
