"""What the commands make of the arguments that they share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.app import faces_setup
from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.face_rows import EYE_PARTS, has_eyes, openface_row
from jaxclnf.app.faces_setup import FaceSetup
from jaxclnf.experts.types import CCNFExperts, CENExperts
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.model import CLNFModel, CLNFPart
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.pose import Camera, head_pose, landmarks_3d
from jaxclnf.fitting.result import PartFit
from jaxclnf.openface.csv_table import OpenFaceColumns, openface_line
from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.status import Status

OPTIONS = FitOptions(window_sizes=(7,), use_parts=False)


def eye_pdm(num_landmarks: int = 28) -> PDM:
    """A shape model of an eye, of no use but to be counted and seen."""
    rng = np.random.default_rng(3)
    return PDM(
        mean_shape=jnp.asarray(rng.normal(size=(num_landmarks, 3))),
        princ_comp=jnp.asarray(rng.normal(size=(num_landmarks, 3, 2))),
        eigen_values=jnp.ones(2),
    )


def with_eyes(model: CLNFModel, num_landmarks: int = 28) -> CLNFModel:
    """The model with two eyes, which cannot be fitted."""
    eyes = tuple(
        CLNFPart(
            model=dataclasses.replace(model, pdm=eye_pdm(num_landmarks), parts=()),
            main_index=jnp.arange(4, dtype=jnp.int32),
            part_index=jnp.arange(4, dtype=jnp.int32),
            name=name,
        )
        for name in reversed(EYE_PARTS)
    )
    return dataclasses.replace(model, parts=eyes)


def fitted_eye(x: float) -> PartFit:
    """A made-up fit of an eye at some place."""
    return PartFit(
        landmarks=jnp.full((28, 2), x),
        params=PDMParams.from_global(
            jnp.asarray([1.5, 0.1, 0.2, 0.3, x, 60.0]), jnp.zeros(2)
        ),
        fitted=jnp.asarray(True),
        status=jnp.asarray(Status.CONVERGED, jnp.int32),
        num_steps=jnp.ones((2, 2), jnp.int32),
        shape_delta=jnp.zeros((2, 2)),
        newton_distance=jnp.zeros((2, 2)),
        log_likelihood=jnp.asarray(0.0),
    )


def facts(options) -> dict:
    """The fields of a dataclass, to be compared."""
    return dataclasses.asdict(options)


def with_cen(model: CLNFModel) -> CLNFModel:
    """The model with a convolutional scale that holds nothing."""
    nothing: Any = dict.fromkeys(f.name for f in dataclasses.fields(CENExperts))
    return dataclasses.replace(model, experts=(CENExperts(**nothing),))


def test_flags_change_the_preset():
    plain, wild = FitOptions(), FitOptions.wild()
    assert facts(FaceSetup().fit_options()) == facts(plain)
    options = FaceSetup(wild=True, sigma=2.0, max_steps=7).fit_options()
    changed = dataclasses.replace(wild, sigma=2.0, max_steps=7)
    assert facts(options) == facts(changed)
    options = FaceSetup(parts=False, starts=11, weight_factor=0.0).fit_options()
    changed = dataclasses.replace(plain, use_parts=False, starts=11)
    assert facts(options) == facts(changed)


def test_searches_and_passes_can_be_asked_for():
    more: dict[str, Any] = {"starts": 11, "finished_starts": 11}
    more |= {"short_search": 5, "max_passes": 20}
    for setup, preset in (
        (FaceSetup(**more), FitOptions()),
        (FaceSetup(dialect="openface", **more), FitOptions.openface()),
    ):
        changed = dataclasses.replace(preset, **more)
        assert facts(setup.fit_options()) == facts(changed)


def test_presets_of_the_openface_dialect(example):
    model, setup = example["model"], FaceSetup(dialect="openface")
    cen, wild = with_cen(model), dataclasses.replace(setup, wild=True)
    assert facts(setup.fit_options(model)) == facts(FitOptions.openface())
    assert facts(wild.fit_options(model)) == facts(FitOptions.openface_wild())
    assert dataclasses.replace(wild, starts=1).fit_options().starts == 1
    assert facts(setup.fit_options(cen)) == facts(FitOptions.openface_cen())
    changed = dataclasses.replace(
        FitOptions.openface_wild(), sigma=1.875, reg_factor=31.5
    )
    assert facts(wild.fit_options(cen)) == facts(changed)
    assert facts(FaceSetup().fit_options(cen)) == facts(FitOptions())


def test_openface_options_with_its_own_model_need_no_word(example, capsys):
    model = example["model"]
    info = dataclasses.replace(model.info, provenance="OpenFace 2.x model file a.txt")
    theirs = dataclasses.replace(model, info=info)
    setup = FaceSetup(openface_options=True, detector="haar")
    setup.say_what_is_used(theirs)
    FaceSetup().say_what_is_used(model)
    assert capsys.readouterr().err == ""
    setup.say_what_is_used(model)
    assert "dialect converged, model " in capsys.readouterr().err


def test_networks_that_are_missed_are_told(detectors, example, capsys):
    """Of OpenFace's models only, and where nobody chose the other detector."""
    model = example["model"]
    info = dataclasses.replace(model.info, provenance="OpenFace 2.x model file a.txt")
    theirs = dataclasses.replace(model, info=info)
    for quiet in (
        (FaceSetup(dialect="openface"), model),
        (FaceSetup(), theirs),
        (FaceSetup(dialect="openface", detector="haar"), theirs),
    ):
        quiet[0].say_what_is_used(quiet[1])
    assert capsys.readouterr().err == ""
    FaceSetup(dialect="openface").say_what_is_used(theirs)
    assert "--mtcnn PATH names them" in capsys.readouterr().err


def test_options_are_checked_with_the_rest():
    with pytest.raises(ArgumentError, match="--sigma -1"):
        FaceSetup(sigma=-1.0).fit_options()
    with pytest.raises(ArgumentError, match="--finished-starts 5: of 3 starts"):
        FaceSetup(starts=3, finished_starts=5).fit_options()


def test_sizes_without_a_scale_are_refused(example):
    model = example["model"]
    for sizes, message in (
        ((7, 7, 7), "--window-sizes 7 7 7: has sizes beyond the scales of the model, "),
        ((0, 0, 7), "--window-sizes 0 0 7: skips every scale of"),
    ):
        with pytest.raises(ArgumentError, match=message + ".*"):
            FaceSetup(window_sizes=sizes).fit_options(model)
    assert FaceSetup(window_sizes=(7, 7, 0)).fit_options(model).window_sizes[2] == 0


def test_the_model_is_prepared_for_its_windows(example, monkeypatch):
    monkeypatch.setattr(faces_setup, "load_model", lambda name: example["model"])
    model = FaceSetup(window_sizes=(9, 0)).load()
    sizes = [list(e.sigma) for e in model.experts if isinstance(e, CCNFExperts)]
    assert sizes == [[9], []]


@pytest.mark.parametrize(("dialect", "axes"), [("openface", 3), ("converged", 4)])
def test_openface_alone_has_a_whole_sigma(example, monkeypatch, dialect, axes):
    monkeypatch.setattr(faces_setup, "load_model", lambda name: example["with_part"])
    model = FaceSetup(dialect=dialect, window_sizes=(9, 0)).load()
    for own in (model, model.parts[0].model):
        experts = own.experts[0]
        assert isinstance(experts, CCNFExperts) and experts.sigma[9][0].ndim == axes


def test_no_column_asked_for_means_all(example):
    model = example["model"]
    n, m = model.pdm.num_landmarks, model.pdm.num_modes
    every = OpenFaceColumns(form="photo", gaze=False, num_landmarks=n, num_modes=m)
    assert FaceSetup(dialect="openface").columns(model, "photo") == every
    every = dataclasses.replace(every, certified=True)
    assert FaceSetup().columns(model, "photo") == every
    eyes = with_eyes(model)
    assert FaceSetup().columns(eyes, "photo").gaze
    assert not FaceSetup(parts=False).columns(eyes, "photo").gaze
    some = FaceSetup(columns_2d=True, columns_gaze=True, precision=5)
    assert some.columns(model, "video") == OpenFaceColumns(
        form="video",
        pose=False,
        landmarks_3d=False,
        pdm_params=False,
        num_landmarks=n,
        num_modes=m,
        certified=True,
        precision=5,
    )
    for some, group in (
        (FaceSetup(columns_3d=True), "landmarks_3d"),
        (FaceSetup(columns_pdm=True), "pdm_params"),
        (FaceSetup(columns_pose=True), "pose"),
    ):
        groups = facts(some.columns(eyes, "photo"))
        all_groups = ("gaze", "pose", "landmarks_2d", "landmarks_3d", "pdm_params")
        assert [name for name in all_groups if groups[name]] == [group]


def test_eyes_are_two_parts_of_28_landmarks(example):
    model = example["model"]
    assert has_eyes(with_eyes(model))
    assert not has_eyes(with_eyes(model, num_landmarks=27))
    one = dataclasses.replace(model, parts=with_eyes(model).parts[:1])
    assert not has_eyes(one)


def test_the_camera_is_guessed_or_given():
    guessed = FaceSetup().camera(480, 640)
    assert facts(guessed) == facts(Camera.for_image(480, 640))
    given = FaceSetup(fx=1.0, fy=2.0, cx=3.0, cy=4.0).camera(480, 640)
    assert facts(given) == {"fx": 1.0, "fy": 2.0, "cx": 3.0, "cy": 4.0}


@pytest.fixture
def detectors(monkeypatch, tmp_path) -> list:
    """Records what is asked of the two detectors; nothing is installed."""
    asked = []

    def haar(grey, *, calibration, min_size):
        asked.append(("haar", grey.ndim, min_size))
        return np.empty((0, 4))

    def mtcnn(networks, bgr, *, min_size):
        asked.append((networks, bgr.ndim, min_size))
        return np.ones((1, 4)), np.ones(1)

    monkeypatch.setattr(faces_setup, "detect_faces", haar)
    monkeypatch.setattr(faces_setup, "detect_faces_mtcnn", mtcnn)
    monkeypatch.setattr(faces_setup, "load_mtcnn", str)
    monkeypatch.setenv("OPENFACE_MODELS_DIR", str(tmp_path / "installed"))
    return asked


def test_faces_are_found_by_the_detector_of_the_dialect(detectors, example, tmp_path):
    bgr, grey = np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6), np.uint8)

    def use(**given) -> tuple:
        boxes = FaceSetup(**given).face_detector(example["model"])(bgr, grey)
        (found,) = detectors
        detectors.clear()
        assert len(boxes) == (found[0] != "haar")
        return found

    model = tmp_path / "model" / "main.txt"
    model.parent.mkdir()
    model.touch()
    ours = {"model": str(model), "dialect": "openface"}
    assert use() == use(**ours) == use(detector="haar") == ("haar", 2, 50)
    assert use(min_face=20) == ("haar", 2, 20)

    installed = tmp_path / "installed" / "2.2.0" / "model"
    for folder in (installed, model.parent):
        (folder / "mtcnn_detector").mkdir(parents=True)
    (installed / "mtcnn_detector" / "MTCNN_detector.txt").touch()
    (installed / "main_clnf_general.txt").touch()  # By this the folder is known.
    there = str(installed / "mtcnn_detector")
    assert use(**ours) == (there, 3, 60)
    (model.parent / "mtcnn_detector" / "MTCNN_detector.txt").touch()
    beside = str(model.parent / "mtcnn_detector")
    assert use(**ours) == (beside, 3, 60)
    assert use(model=str(model)) == ("haar", 2, 50)
    assert use(model=str(model), detector="mtcnn") == (beside, 3, 60)
    assert use(dialect="openface") == (there, 3, 60)
    assert use(mtcnn=tmp_path, min_face=12) == (str(tmp_path), 3, 12)
    with pytest.raises(ArgumentError, match="--min-face 11: must be 12 or more"):
        FaceSetup(mtcnn=tmp_path, min_face=11).face_detector(example["model"])


@pytest.mark.slow
def test_rows_hold_what_the_library_says(example):
    model, image = example["model"], example["image"]
    result = fit(model, image, np.asarray(example["box"]), options=OPTIONS)
    camera = Camera.for_image(*image.shape)
    row = openface_row(model, result, camera, frame=3, face_id=2, timestamp=0.5)
    assert (row.frame, row.face_id, row.timestamp) == (3, 2, 0.5)
    assert row.confidence is None and row.success
    assert row.eye_landmarks_2d is None and row.eye_landmarks_3d is None
    assert row.status == Status.CONVERGED
    assert row.steps == int(result.num_steps.sum(dtype=jnp.int32))
    assert row.certified is True and result.certified
    pose = jax.jit(head_pose)(model.pdm, result.params, camera, result.landmarks)
    points = jax.jit(landmarks_3d)(model.pdm, result.params, camera)
    for found, expected in (
        (row.landmarks, result.landmarks),
        (row.pose, pose),
        (row.landmarks_3d, points),
        (row.params_global, result.params.params_global),
        (row.params_local, result.params.params_local),
    ):
        assert found is not None
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_rows_of_eyes_are_left_then_right(example):
    model = with_eyes(example["model"])
    image = example["image"]
    result = fit(model, image, np.asarray(example["box"]), options=OPTIONS)
    eyes = {
        name: fitted_eye(x) for name, x in zip(EYE_PARTS, (90.0, 150.0), strict=True)
    }
    camera = Camera.for_image(*image.shape)
    assert openface_row(model, result, camera).eye_landmarks_2d is None
    result = dataclasses.replace(result, certainty=jnp.asarray(0.5), parts=eyes)
    row = openface_row(model, result, camera)
    assert row.confidence == 0.5
    assert row.eye_landmarks_2d is not None and row.eye_landmarks_3d is not None
    np.testing.assert_array_equal(row.eye_landmarks_2d[:, 0], [90] * 28 + [150] * 28)
    points = [jax.jit(landmarks_3d)(eye_pdm(), e.params, camera) for e in eyes.values()]
    np.testing.assert_allclose(row.eye_landmarks_3d, jnp.concatenate(points), rtol=1e-9)
    columns = FaceSetup().columns(model, "photo")
    assert openface_line(columns, row).startswith("0, 0.500, 0.000000, ")


@pytest.mark.slow
def test_rows_of_failures_can_be_written(example):
    model = example["model"]
    result = fit(model, example["image"], np.full(4, np.nan), options=OPTIONS)
    camera = Camera.for_image(*example["image"].shape)
    row = openface_row(model, result, camera, dialect="openface")
    assert row.status == Status.BAD_START and not row.success
    line = openface_line(FaceSetup().columns(model, "photo"), row)
    assert "nan" not in line and line.endswith(", BAD_START, 0, , 0")
