"""`jaxclnf train`, from a folder of pictures to a model that fits them."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf import (
    FitOptions,
    JointValidator,
    PDMParams,
    Status,
    fit,
    load_model,
    project,
    save_model,
)
from jaxclnf.app.cli import main
from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.media import write_png
from jaxclnf.app.train import _decisive, _read_blendshapes, compact
from jaxclnf.app.train_config import read_train_config
from jaxclnf.app.train_store import FolderStore, fingerprint
from jaxclnf.experts.types import CCNFExperts
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.learn.accuracy import as_loaded
from jaxclnf.learn.faces import LabelledFaces, held_out
from jaxclnf.learn.options import ValidatorOptions
from tests import synthetic

CONFIG = """
name = "tiny"
out = "build"
[[data]]
images = "faces"
[labels]
held_out = 0.3
outline = []
[shape]
num_modes = 3
num_rounds = 4
symmetric = false
[experts]
scales = [0.4]
neighbour_windows = [7]
view_reach_deg = 40.0
samples_per_epoch = 64
[experts.field]
window_size = 7
support = 7
num_neurons = 2
batch_size = 16
num_epochs = 12
[boxes]
calibrate = false
"""


_place = jax.jit(PDMParams.from_global)
_project = jax.jit(project)


def draw_face(params: PDMParams, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a pattern of its own at every landmark, and the landmarks."""
    pdm = synthetic.make_pdm()
    points = np.asarray(_project(pdm, params))
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:160, 0:170].astype(float)
    picture = cv2.GaussianBlur(rng.normal(0, 25, rows.shape), (0, 0), 2)
    for i, (x, y) in enumerate(points):
        right, down = columns - x, rows - y
        angle = 2.4 * i
        wave = np.cos((right * np.cos(angle) + down * np.sin(angle)) / 1.7 + i)
        picture += 70 * wave * np.exp(-(right**2 + down**2) / (2 * 4.0**2))
    return np.clip(128 + picture, 0, 255).astype(np.uint8), points


def random_face(seed: int, yaw: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """A face at a random angle, yaw of that standard deviation, and its landmarks."""
    pdm = synthetic.make_pdm()
    rng = np.random.default_rng(seed)
    turn = rng.normal(0, (0.15, yaw, 0.08))
    pose = [rng.uniform(0.8, 1.0), *turn, *(85, 80) + rng.normal(0, 3, 2)]
    modes = rng.normal(size=pdm.num_modes) * np.sqrt(pdm.eigen_values) / 2
    return draw_face(_place(jnp.asarray(pose), jnp.asarray(modes)), seed)


def write_faces(folder: Path, count: int) -> None:
    """Pictures of faces at many angles, with `.pts` files beside them."""
    folder.mkdir()
    for i in range(count):
        picture, points = random_face(i)
        write_png(folder / f"{i:03d}.png", cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
        lines = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
        text = f"version: 1\nn_points: {len(points)}\n{{\n{lines}\n}}\n"
        (folder / f"{i:03d}.pts").write_text(text)


def write_config(folder: Path, text: str = CONFIG) -> str:
    """The configuration's file."""
    path = folder / "train.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a training ran."""
    folder = tmp_path_factory.mktemp("train")
    write_faces(folder / "faces", 60)
    assert main(["train", write_config(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_trained_model_fits_new_faces(trained: Path) -> None:
    model = load_model(trained / "build" / "tiny.npz")
    assert model.info.name == "tiny"
    picture, points = random_face(1000, yaw=0.0)
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    box = np.concatenate([low, size])
    result = fit(model, picture, box, options=FitOptions(window_sizes=(7,)))
    assert Status(int(result.status)) == Status.CONVERGED
    accuracy = json.loads((trained / "build" / "summary.json").read_text())["accuracy"]
    assert accuracy["converged"] == 1
    assert accuracy["median"] < 3  # percent of a face of about 100 pixels


def _filters(model: CLNFModel) -> list:
    return [e.weights for e in model.experts if isinstance(e, CCNFExperts)]


@pytest.mark.slow
def test_a_stored_model_gives_the_same_fits(tmp_path: Path) -> None:
    example = synthetic.example(np.float32)
    exact = compact(example["model"])
    save_model(exact, tmp_path / "model.npz")
    options = FitOptions(window_sizes=(7, 7))
    stored = load_model(tmp_path / "model.npz").prepared(options.window_sizes)
    used = as_loaded(exact).prepared(options.window_sizes)
    arrays = zip(
        jax.tree.leaves((used.pdm, _filters(used))),
        jax.tree.leaves((stored.pdm, _filters(stored))),
        strict=True,
    )
    assert all(bool(jnp.all(a == b)) for a, b in arrays)
    # The products of equal arrays may be summed in another order where the arrays lie
    # otherwise in memory.
    one, other = (
        fit(m, example["image"], params=example["params"], options=options)
        for m in (used, stored)
    )
    np.testing.assert_allclose(one.landmarks, other.landmarks, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_summary_tells_what_was_done(trained: Path) -> None:
    summary = json.loads((trained / "build" / "summary.json").read_text())
    names = [f"{i:03d}.png" for i in range(60)]
    assert summary["held_out"] == held_out(names, 0.3).sum()
    assert summary["data"] == [{"images": "faces", "used": 60, "marked_unused": 0}]
    assert (
        summary["left_out"] == summary["missing"] == []
        and summary["accuracy"]["num_faces"] > 0
    )
    (in_place,), (lost,) = (
        summary["validator"][f"trusted_{kind}"] for kind in ("in_place", "lost")
    )
    # A third of the pictures is cut off or partly covered.
    assert in_place > 0.7 and lost < 0.1
    model = load_model(trained / "build" / "tiny.npz")
    assert isinstance(model.validator, JointValidator)
    assert not list((trained / "build").glob(".*"))


@pytest.mark.slow
def test_a_second_run_goes_on_from_checkpoints_to_the_same_model(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trained / "build" / "tiny.npz"
    before = file.read_bytes()
    assert main(["train", write_config(trained)]) == 0
    assert "went on after epoch 12" in capsys.readouterr().out
    assert file.read_bytes() == before
    # Without checkpoints everything is done again, with the same result.
    for checkpoint in (trained / "build" / "checkpoints").rglob("*.npz"):
        checkpoint.unlink()
    assert main(["train", write_config(trained)]) == 0
    assert "went on" not in capsys.readouterr().out
    assert file.read_bytes() == before


def test_checkpoints_do_not_depend_on_what_comes_after_them(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 1)
    config = read_train_config(Path(write_config(tmp_path)))
    other = ValidatorOptions(num_hidden=0, max_noise=1.0)
    # Faces and blendshapes count by what is in them, not by where they are.
    shape = dataclasses.replace(
        config.shape, variance_factor=3.0, blendshapes=tmp_path / "b.npz"
    )
    later = dataclasses.replace(
        config, name="b", shape=shape, validator=other, provenance="b"
    )
    assert _decisive(later) == _decisive(config)
    assert _decisive(dataclasses.replace(config, seed=5)) != _decisive(config)


@pytest.mark.slow
def test_bad_faces_stop_a_training_unless_it_is_told_to_go_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_faces(tmp_path / "faces", 40)
    (tmp_path / "faces" / "003.png").write_bytes(b"not a picture")
    text = (tmp_path / "faces" / "004.pts").read_text()
    (tmp_path / "faces" / "004.pts").write_text(
        text.replace("12", "11").replace("}", "", 1).rsplit("\n", 2)[0] + "\n}\n"
    )
    config = write_config(tmp_path)
    assert main(["train", config]) == 2
    error = capsys.readouterr().err
    assert "003.png" in error and "004.pts" in error and "--keep-going" in error
    assert not (tmp_path / "build").exists()
    model = synthetic.example(np.float32)["model"]
    names: list[str] = []

    def train(_: object, faces: LabelledFaces, __: object) -> tuple:
        names.extend(faces.names)
        return model, {"missing": ["no validator: found nothing"]}

    monkeypatch.setattr("jaxclnf.app.train.train_model", train)
    assert main(["train", config, "--keep-going"]) == 0
    said = capsys.readouterr()
    assert "38 faces" in said.out
    assert "tiny.npz: no validator: found nothing. All its fits that do" in said.err
    summary = json.loads((tmp_path / "build" / "summary.json").read_text())
    assert summary["missing"] == ["no validator: found nothing"]
    assert len(names) == 38 and not {"003.png", "004.png"} & {*names}
    assert load_model(tmp_path / "build" / "tiny.npz").pdm.num_landmarks == 12


def test_an_empty_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faces").mkdir()
    assert main(["train", write_config(tmp_path)]) == 2
    assert str(tmp_path / "faces") in capsys.readouterr().err
    assert not (tmp_path / "build").exists()


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_faces(tmp_path / "faces", 20)
    (tmp_path / "build").write_text("a file")
    assert main(["train", write_config(tmp_path)]) == 2
    assert f"{tmp_path / 'build'}: is a file, not a folder" in capsys.readouterr().err

    (tmp_path / "build").unlink()
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "checkpoints").touch()
    assert main(["train", write_config(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "checkpoints" in said.err and "shape:" not in said.out
    (tmp_path / "build" / "checkpoints").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxclnf.app.train.train_model", full)
    assert main(["train", write_config(tmp_path)]) == 2
    assert "build: cannot be written (No space left" in capsys.readouterr().err


def test_an_interrupted_training_says_how_to_go_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_faces(tmp_path / "faces", 1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxclnf.app.train.train_model", interrupted)
    assert main(["train", write_config(tmp_path)]) == 130
    assert "the same command goes on from what was" in capsys.readouterr().err


def test_an_unknown_option_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faces").mkdir()
    assert main(["train", write_config(tmp_path, CONFIG + "speed = 9\n")]) == 2
    error = capsys.readouterr().err
    assert "train.toml" in error and "speed" in error


def damaged_archives(data: bytes) -> Iterator[bytes]:
    """What an `.npz` file may have become."""
    yield from (b"", b"PK", data[:-10], data[: len(data) // 2])
    array = io.BytesIO()
    np.save(array, np.arange(3))
    yield array.getvalue()


def test_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "a" / "b")
    tree = {"x": jnp.arange(3.0), "y": (jnp.asarray(2, jnp.int32),)}
    assert store.load("one", tree) is None
    store.save("one", tree)
    back = store.load("one", jax.tree.map(jnp.zeros_like, tree))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), back, tree))
    assert back["y"][0].dtype == jnp.int32
    # A tree of other sizes, or a damaged file, is no checkpoint.
    assert store.load("one", {**tree, "x": jnp.arange(4.0)}) is None
    file = tmp_path / "a" / "b" / "one.npz"
    for damaged in damaged_archives(file.read_bytes()):
        file.write_bytes(damaged)
        assert store.load("one", tree) is None


def test_damaged_blendshapes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "shapes.npz"
    np.savez(file, neutral=np.zeros(3))
    for damaged in damaged_archives(file.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(ArgumentError, match="npz: is (no|a damaged) .npz"):
            _read_blendshapes(file, 5)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("neutral", np.zeros((4, 3)), r"'neutral' .* numbers of shape \(5, 3\)"),
        ("identity", np.zeros(3), r"'identity' .* \(3,\), expected .* \(i, 5, 3\)"),
        ("expression", np.full((2, 5, 3), "x"), "'expression' with <U1"),
        ("expression", np.full((2, 5, 3), np.nan), "'expression' with numbers not fin"),
        ("expression_names", np.array(["a"]), r".*expected text of shape \(2\)"),
    ],
)
def test_blendshapes_that_do_not_fit(
    tmp_path: Path, key: str, value: np.ndarray, message: str
) -> None:
    file = tmp_path / "shapes.npz"
    arrays = {
        "neutral": np.zeros((5, 3)),
        "identity": np.zeros((3, 5, 3)),
        "expression": np.zeros((2, 5, 3)),
        "expression_names": np.array(["a", "b"]),
    }
    np.savez(file, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    assert _read_blendshapes(file, 5) is not None
    np.savez(file, allow_pickle=False, **{**arrays, key: value})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match=f"shapes.npz: found {message}"):
        _read_blendshapes(file, 5)


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "held_out = 0.3",
            "held_out = 1e-9",
            "held_out: found 1e-09, which holds out 0",
        ),
        ("held_out = 0.3", "held_out = 0.9999", "holds out 4 of the 4 faces, expected"),
        (
            "outline = []",
            "outline = [0, 13]",
            "outline: found [0, 13], expected 0 to 12",
        ),
    ],
)
def test_what_the_faces_do_not_allow_is_found_before_learning(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
) -> None:
    write_faces(tmp_path / "faces", 4)
    assert main(["train", write_config(tmp_path, CONFIG.replace(old, new))]) == 2
    said = capsys.readouterr()
    assert f"train.toml: [labels] {old.split()[0]}" in said.err and message in said.err
    assert "shape:" not in said.out


def test_a_model_file_that_is_a_folder_or_a_bad_licence_is_found_before_learning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_faces(tmp_path / "faces", 20)
    (tmp_path / "notes.txt").write_bytes(b"\xa9 me")
    text = 'licence_files = ["notes.txt"]\n' + CONFIG
    assert main(["train", write_config(tmp_path, text)]) == 2
    said = capsys.readouterr()
    assert "notes.txt: cannot be read as text" in said.err and "shape:" not in said.out
    (tmp_path / "build" / "tiny.npz").mkdir()
    assert main(["train", write_config(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "tiny.npz: is a folder" in said.err and "shape:" not in said.out


def test_other_data_or_options_have_other_checkpoints() -> None:
    picture = np.zeros((4, 4), np.uint8)
    one = LabelledFaces(("a",), (picture,), np.zeros((1, 2, 2)), np.ones((1, 2)))
    other = LabelledFaces(("a",), (picture + 1,), one.landmarks, one.spread)
    marks = {fingerprint(o, f) for o in ("x", "y") for f in (one, other)}
    marks |= {fingerprint("x", one, {"a": np.full(2, x)}) for x in (0.0, 1.0)}
    assert len(marks) == 6
    assert fingerprint("x", one) == fingerprint("x", one, {})
