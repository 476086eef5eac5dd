"""The chain of a training: which faces a view learns from, both halves of a face."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf import PDMParams, project
from jaxclnf.learn.ccnf.samples import Augmentation
from jaxclnf.learn.ccnf.tasks import FieldOptions
from jaxclnf.learn.chain import LearntShape, _is_taught, learn_experts, learn_shape
from jaxclnf.learn.faces import LabelledFaces
from jaxclnf.learn.options import ExpertOptions, ShapeOptions
from jaxclnf.learn.pdm.symmetry import mirror_index
from jaxclnf.shape.pdm import PDM
from tests.synthetic import field_task, make_image

# Three rows of an outer pair, an inner pair; symmetric about x = 0.
POINTS = np.asarray([[x, y] for y in (-50, 0, 45) for x in (-60, -22, 22, 60)], float)
MIRROR = np.asarray([3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8])
FIELD = FieldOptions(
    window_size=5, support=3, num_neurons=1, num_epochs=1, batch_size=8
)


def symmetric_pdm() -> PDM:
    """A symmetric shape with one symmetric mode."""
    depth = 0.006 * np.sum(POINTS**2, axis=1, keepdims=True)
    mean = np.concatenate([POINTS, depth], axis=1)
    mean -= mean.mean(axis=0)
    mode = np.zeros((12, 3, 1))
    mode[8:, 1] = 0.5
    return PDM(
        mean_shape=jnp.asarray(mean),
        princ_comp=jnp.asarray(mode),
        eigen_values=jnp.asarray([30.0]),
    )


def faces_at(turns: list[float]) -> tuple[LabelledFaces, PDMParams]:
    """One face at each yaw, on smooth noise, and their true parameters."""
    pdm = symmetric_pdm()
    pose = np.asarray(
        [[1.0, 0, np.radians(yaw), 0, 128 + i % 3, 120] for i, yaw in enumerate(turns)]
    )
    modes = np.random.default_rng(0).normal(0, 5, (len(pose), 1))
    params = jax.jit(jax.vmap(PDMParams.from_global))(pose, modes)
    points = np.asarray(jax.jit(jax.vmap(project, (None, 0)))(pdm, params))
    faces = LabelledFaces(
        names=tuple(f"{i}.png" for i in range(len(pose))),
        images=tuple(make_image(i) for i in range(len(pose))),
        landmarks=points,
        spread=np.ones(points.shape[:2]),
    )
    return faces, params


def learnt(yaw_deg: list[float], mirror: np.ndarray | None = MIRROR) -> LearntShape:
    """The symmetric shape as if it had been learnt from such faces."""
    faces, params = faces_at(yaw_deg)
    return LearntShape(symmetric_pdm(), np.ones(12), mirror, faces, params)


def test_the_symmetric_shape_is_what_the_tests_take_it_for() -> None:
    mean = np.asarray(symmetric_pdm().mean_shape)
    assert mirror_index(mean).tolist() == MIRROR.tolist()


@pytest.mark.slow
def test_both_halves_of_a_symmetric_face_have_mirrored_experts() -> None:
    shape = learnt([0, 5, -5, 40, -35, 30, -30, 3])
    held = np.asarray([False] * 5 + [True] * 3)
    options = ExpertOptions(
        scales=(0.4,),
        views_deg=(0.0, 35.0),
        view_reach_deg=10.0,
        samples_per_epoch=8,
        neighbour_windows=(5,),
        field=FIELD,
    )
    (experts,) = learn_experts(shape, held, options)
    np.testing.assert_allclose(
        np.degrees(experts.view_centers[:, 1]), [-35, 0, 35], atol=1e-5
    )
    for here, there in ((0, 2), (1, 1)):
        for field in ("norm_weights", "bias", "alpha", "beta", "confidence"):
            values = np.asarray(getattr(experts, field))
            np.testing.assert_allclose(values[here][MIRROR], values[there], 1e-12)
        weights = np.asarray(experts.weights)
        np.testing.assert_allclose(
            weights[here][MIRROR][..., ::-1], weights[there], 1e-12
        )
    assert bool(jnp.all(experts.visibility))
    assert set(experts.neighbours) == {5}


@pytest.mark.slow
def test_an_asymmetric_face_learns_every_landmark_from_unmirrored_faces() -> None:
    shape = learnt([0, 5, -5, 0], mirror=None)
    held = np.asarray([False] * 3 + [True])
    options = ExpertOptions(scales=(0.4,), samples_per_epoch=3, field=FIELD)
    (experts,) = learn_experts(shape, held, options)
    assert experts.weights.shape[:2] == (1, 12)
    assert not np.allclose(
        np.asarray(experts.weights)[0][MIRROR][..., ::-1], experts.weights[0]
    )


@pytest.mark.slow
def test_a_landmark_that_no_face_shows_is_invisible() -> None:
    shape = learnt([0, 5, -5, 0], mirror=None)
    spread = shape.faces.spread.copy()
    spread[:, 4] = np.inf
    faces = dataclasses.replace(shape.faces, spread=spread)
    options = ExpertOptions(scales=(0.4,), samples_per_epoch=3, field=FIELD)
    (experts,) = learn_experts(
        dataclasses.replace(shape, faces=faces), np.arange(4) == 3, options
    )
    expected = np.arange(12) != 4
    assert np.asarray(experts.visibility)[0].tolist() == expected.tolist()
    assert np.asarray(experts.alpha)[0, 4].tolist() == [0.0]
    assert bool(jnp.all(jnp.isfinite(experts.weights)))


def test_enough_faces_have_to_label_a_landmark_or_its_partner() -> None:
    task, _ = field_task()
    spread = np.ones((3, 12))
    spread[:, 0] = spread[1:, 5] = spread[2:, 6] = np.inf
    faces = jnp.asarray([0, 1, 2, 0, 1, 2])
    partner = np.arange(12)
    partner[[0, 1]] = 1, 0
    task = dataclasses.replace(
        task,
        bank=dataclasses.replace(task.bank, spread=jnp.asarray(spread)),
        faces=faces,
        flipped=jnp.arange(6) > 2,
        landmarks=jnp.asarray([0, 1, 5, 6, 7]),
        mirror=jnp.asarray(partner),
    )
    # The mirrored faces show landmark 0 where its partner is labelled.
    assert _is_taught(task).tolist() == [True, True, False, True, True]
    task = dataclasses.replace(task, flipped=jnp.zeros(6, bool))
    assert _is_taught(task).tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("held", [[True, True], [False, False]])
def test_a_view_without_faces_is_refused(held: list[bool]) -> None:
    options = ExpertOptions(scales=(0.4,), field=FIELD)
    with pytest.raises(ValueError, match="found no face to .* within 25 degrees of 0"):
        learn_experts(learnt([0, 2]), np.asarray(held), options)


@pytest.mark.slow
def test_the_far_outline_is_not_learnt_from() -> None:
    rng = np.random.default_rng(1)
    faces, _ = faces_at([*rng.uniform(-25, 25, 60), 60.0, -60.0])
    options = ShapeOptions(num_modes=1, num_rounds=2)
    shape = learn_shape(
        faces,
        np.arange(62) < 6,
        options,
        outline=range(8, 12),
        outline_limit=float(np.radians(40)),
    )
    masked = np.isinf(shape.faces.spread)
    # Positive yaw shows the right side of the image; depth alone cannot tell which of
    # the two turns it is, but the two faces turn to different sides.
    assert masked[-2].sum() == masked[-1].sum() == 2
    assert set(np.nonzero(masked[-2])[0]) | set(np.nonzero(masked[-1])[0]) == {
        *range(8, 12)
    }
    assert not masked[:-2].any()
    assert shape.mirror is not None and shape.mirror.tolist() == MIRROR.tolist()


def test_coarse_scales_vary_more() -> None:
    field = FieldOptions(augmentation=Augmentation(scale=0.1, rotation=0.2))
    options = ExpertOptions(scales=(0.2, 0.3, 0.4), variation=(2.0, 1.0), field=field)
    found = [options.field_at(i).augmentation for i in range(3)]
    assert [a.scale for a in found] == [0.2, 0.1, 0.1]
    assert [a.rotation for a in found] == [0.4, 0.2, 0.2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scales": (0.5, 0.25)}, "scales: found"),
        ({"scales": ()}, "scales: found"),
        ({"views_deg": (120.0,)}, "views_deg: found"),
        ({"view_reach_deg": 0.0}, "view_reach_deg: found 0.0, expected a positive"),
        ({"variation": ()}, "variation: found"),
        ({"neighbour_windows": (4,)}, "neighbour_windows: found"),
        ({"field": FieldOptions(window_size=4)}, "field.window_size: found 4"),
        ({"field": FieldOptions(num_epochs=0)}, "field.num_epochs: found 0"),
        ({"field": FieldOptions(learning_rate=0.0)}, "field.learning_rate: found"),
        ({"field": FieldOptions(decay=-1.0)}, "field.decay: found -1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertOptions(**wrong)
    with pytest.raises(ValueError, match="num_modes: found 0, expected 1 or more"):
        ShapeOptions(num_modes=0)
