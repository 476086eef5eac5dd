"""A known field comes back, rendered faces are learnt, runs repeat exactly."""

import dataclasses
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.learn.ccnf.field import FieldParams, field_means, precision_matrices
from jaxclnf.learn.ccnf.neighbours import neighbour_matrices
from jaxclnf.learn.ccnf.samples import Augmentation, FaceBank, Samples
from jaxclnf.learn.ccnf.training import (
    FieldOptions,
    FieldTask,
    Learning,
    begin,
    confidences,
    held_out_loss,
    initial_fields,
    initial_moments,
    learn_fields,
    learn_step,
    run_epoch,
)
from tests import synthetic

WINDOW = 7
_means = jax.jit(field_means)
_precision = jax.jit(precision_matrices)


def same(one: Any, other: Any) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def correlations(one: jax.Array, other: jax.Array) -> np.ndarray:
    """Of the maps of each landmark, over all faces and pixels."""
    pairs = zip(jnp.moveaxis(one, 1, 0), jnp.moveaxis(other, 1, 0), strict=True)
    return np.asarray([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])


# A known field comes back.

# No weight on the betas: it would pull them away from the truth.
KNOWN = FieldOptions(
    window_size=WINDOW,
    support=5,
    num_neurons=2,
    learning_rate=0.05,
    decay=1e-6,
    coupling_decay=0.0,
)


def known_fields(landmarks: int = 3) -> FieldParams:
    """An edge and a blob for each landmark, clearly coupled."""
    rng = np.random.default_rng(11)
    filters = np.empty((landmarks, 2, 5, 5))
    y, x = np.mgrid[-2:3, -2:3].astype(float)
    for n, angle in enumerate(np.linspace(0, 2, landmarks)):
        filters[n, 0] = np.cos(angle) * x + np.sin(angle) * y
        filters[n, 1] = (-1) ** n * np.exp(-(x**2 + y**2) / 3)
    filters -= filters.mean(axis=(2, 3), keepdims=True)
    filters *= 6 / np.sqrt(np.sum(filters**2, axis=(2, 3), keepdims=True))
    return FieldParams(
        filters=jnp.asarray(filters),
        bias=jnp.asarray(rng.uniform(-3, -2, (landmarks, 2))),
        log_alpha=jnp.log(jnp.asarray(rng.uniform(8, 16, (landmarks, 2)))),
        log_beta=jnp.log(jnp.asarray(rng.uniform(1, 4, (landmarks, 3)))),
    )


def smooth_areas(seed: int, count: int, landmarks: int = 3) -> jax.Array:
    """Random pictures a little smoother than noise."""
    side = WINDOW + KNOWN.support - 1
    noise = np.random.default_rng(seed).normal(size=(count, landmarks, side, side))
    blurred = [cv2.GaussianBlur(a, (0, 0), 1.0) for a in noise.reshape(-1, side, side)]
    return jnp.asarray(np.stack(blurred).reshape(noise.shape))


@pytest.mark.slow
def test_a_known_field_is_recovered():
    """From pictures and maps drawn from it alone, in double precision."""
    truth = known_fields()
    neighbours = jnp.asarray(neighbour_matrices(WINDOW))
    precision = np.asarray(_precision(truth, neighbours))
    noise_factor = np.linalg.cholesky(np.linalg.inv(precision))
    num_steps, batch = 250, 64
    areas = smooth_areas(0, 8 * batch)
    noise = np.random.default_rng(1).normal(size=(*areas.shape[:2], WINDOW**2))
    noise = np.einsum("nij,fnj->fni", noise_factor, noise)
    targets = _means(truth, areas, neighbours) + noise
    params = initial_fields(jax.random.key(3), 3, KNOWN, areas.dtype)
    moments = initial_moments(params)
    for step in range(num_steps):
        some = slice(step % 8 * batch, (step % 8 + 1) * batch)
        samples = Samples(
            areas=areas[some], targets=targets[some], weights=jnp.ones((batch, 3))
        )
        params, moments = learn_step(KNOWN, num_steps, params, moments, samples)
    new = smooth_areas(2, 64)
    expected = _means(truth, new, neighbours)
    agreement = correlations(_means(params, new, neighbours), expected)
    assert agreement.min() > 0.95
    found = np.asarray(_precision(params, neighbours))
    wrong = np.linalg.norm(found - precision, axis=(1, 2)) / np.linalg.norm(
        precision, axis=(1, 2)
    )
    assert wrong.max() < 0.1


def test_coupling_decay_lowers_the_betas():
    """Of samples without weight, only the decays are left."""
    fields = initial_fields(jax.random.key(0), 1, KNOWN, jnp.dtype("f8"))
    samples = Samples(
        areas=smooth_areas(0, 1, 1),
        targets=jnp.ones((1, 1, WINDOW**2)),
        weights=jnp.zeros((1, 1)),
    )
    options = dataclasses.replace(KNOWN, coupling_decay=1.0)
    moved, _ = learn_step(options, 1, fields, initial_moments(fields), samples)
    np.testing.assert_array_equal(moved.log_alpha, fields.log_alpha)
    np.testing.assert_array_equal(moved.bias, fields.bias)
    # A first step of Adam has the step size, whatever the gradient.
    change = np.asarray(moved.log_beta - fields.log_beta)
    np.testing.assert_allclose(change, -options.learning_rate, rtol=0, atol=1e-6)


# Rendered faces.

RENDERED = FieldOptions(
    window_size=WINDOW,
    support=9,
    num_neurons=3,
    batch_size=12,
    num_epochs=24,
    learning_rate=0.05,
    augmentation=Augmentation(scale=0.03, rotation=0.05, shift=0.4, noise=0.06),
)


def render_faces(count: int, seed: int = 0) -> FaceBank:
    """One textured plane seen in many places, sizes and angles, with noise.

    Single precision, as models are made.
    """
    rng = np.random.default_rng(seed)
    texture = synthetic.make_image(5)
    truth = np.asarray(synthetic.make_pdm().mean_shape)[:, :2]
    middle = np.asarray([130.0, 120.0])  # of the texture, which has 1 px per mm
    images, landmarks, frames = [], [], []
    for _ in range(count):
        size, angle = rng.uniform(0.8, 1.1), rng.uniform(-0.3, 0.3)
        cosine, sine = size * np.cos(angle), size * np.sin(angle)
        frame = np.asarray([[cosine, -sine], [sine, cosine]])
        place = np.asarray([100.0, 100.0]) + rng.uniform(-9, 9, 2)
        warp = np.column_stack([frame, place - frame @ middle])
        image = cv2.warpAffine(texture, warp, (200, 200)).astype(float)
        image = rng.uniform(0.6, 1.0) * image + rng.normal(0, 4, image.shape)
        images.append(np.clip(np.round(image), 0, 255).astype(np.uint8))
        landmarks.append(truth @ frame.T + place)
        frames.append(frame)
    return FaceBank(
        images=jnp.asarray(np.stack(images)),
        landmarks=jnp.asarray(np.stack(landmarks), jnp.float32),
        spread=jnp.zeros((count, 12), jnp.float32),
        img_from_face=jnp.asarray(np.stack(frames), jnp.float32),
    )


@pytest.fixture(scope="module")
def task() -> FieldTask:
    """Forty-eight faces to learn three landmarks from, twelve held out."""
    return FieldTask(
        bank=render_faces(60),
        faces=jnp.arange(48, dtype=jnp.int32),
        flipped=jnp.zeros(48, bool),
        check_faces=jnp.arange(48, 60, dtype=jnp.int32),
        check_flipped=jnp.zeros(12, bool),
        landmarks=jnp.asarray([1, 5, 10], jnp.int32),
        mirror=jnp.arange(12, dtype=jnp.int32),
        patch_scaling=jnp.asarray(0.5, jnp.float32),
    )


@pytest.fixture(scope="module")
def history(task: FieldTask) -> list[Learning]:
    """The states of a run after each epoch."""
    states: list[Learning] = []
    last = learn_fields(jax.random.key(0), task, RENDERED, on_epoch=states.append)
    same(last, states[-1])
    return states


@pytest.mark.slow
def test_landmarks_of_rendered_faces_are_learnt(task, history):
    key = jax.random.key(0)
    trust = np.asarray(confidences(key, task, RENDERED, history[-1].best))
    assert trust.dtype == np.float32
    assert trust.min() > 0.8 and trust.max() <= 1
    before = begin(key, task, RENDERED).params
    blind = confidences(key, task, RENDERED, before)
    assert np.asarray(blind).max() < trust.min() - 0.2


@pytest.mark.slow
def test_every_face_may_be_mirrored(task, history):
    """Mirrored faces with mirrored filters are explained as well as plain ones."""
    turned = dataclasses.replace(task, check_flipped=jnp.ones_like(task.check_flipped))
    fields = history[-1].best
    mirrored = dataclasses.replace(fields, filters=fields.filters[:, :, :, ::-1])
    key = jax.random.key(0)
    plain = np.asarray(held_out_loss(key, task, RENDERED, fields))
    other = np.asarray(held_out_loss(key, turned, RENDERED, mirrored))
    np.testing.assert_allclose(other, plain, atol=0.05)
    wrong = np.asarray(held_out_loss(key, turned, RENDERED, fields))
    assert np.all(wrong > other)


@pytest.mark.slow
def test_a_resumed_run_is_the_run_itself(task, history):
    key = jax.random.key(0)
    # As a checkpoint gives them back: arrays that were NumPy's.
    first, late = (
        jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), history[i]) for i in (0, -3)
    )
    assert int(first.epoch) == 1
    same(run_epoch(key, task, RENDERED, first), history[1])
    same(learn_fields(key, task, RENDERED, state=late), history[-1])


@pytest.mark.slow
def test_the_same_key_gives_the_same_fields(task, history):
    for key, equal in ((jax.random.key(0), True), (jax.random.key(9), False)):
        state = run_epoch(key, task, RENDERED, begin(key, task, RENDERED))
        if equal:
            same(state, history[0])
        else:
            assert np.all(state.best_loss != history[0].best_loss)


@pytest.mark.slow
def test_the_best_fields_are_kept(task, history):
    losses = np.stack([state.loss for state in history])
    np.testing.assert_array_equal(history[-1].best_loss, losses.min(axis=0))
    assert np.all(losses[-1] < losses[0])
    again = held_out_loss(jax.random.key(0), task, RENDERED, history[-1].best)
    np.testing.assert_allclose(again, history[-1].best_loss, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_types_stay_what_they_are(task, history):
    start = begin(jax.random.key(0), task, RENDERED)
    assert {x.dtype for x in jax.tree.leaves(start.params)} == {np.dtype(np.float32)}
    for one, other in zip(*map(jax.tree.leaves, (start, history[0])), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.slow
def test_learning_stops_without_progress(task, history):
    """Nothing does better than a loss of minus infinity."""
    perfect = dataclasses.replace(
        history[0], best_loss=jnp.full_like(history[0].best_loss, -jnp.inf)
    )
    key = jax.random.key(0)
    state = learn_fields(key, task, RENDERED, state=perfect)
    patience = RENDERED.patience
    assert (int(state.epoch), int(state.stale)) == (1 + patience, patience)
    same(state.params, history[patience].params)
    same(state.best, perfect.best)
    same(learn_fields(key, task, RENDERED, state=state), state)  # and does not go on


@pytest.mark.slow
def test_a_landmark_without_labels(task, history):
    """It stays finite, is never the best, and the others do not notice."""
    spread = task.bank.spread.at[:, 5].set(jnp.inf)
    bank = dataclasses.replace(task.bank, spread=spread)
    key = jax.random.key(0)
    hidden = dataclasses.replace(task, bank=bank)
    state = run_epoch(key, hidden, RENDERED, begin(key, hidden, RENDERED))
    assert float(state.best_loss[1]) == np.inf
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params))
    assert int(state.stale) == 0
    trust = confidences(key, hidden, RENDERED, state.best)
    assert float(trust[1]) == 0 and np.all(np.asarray(trust)[[0, 2]] > 0)
    np.testing.assert_allclose(
        np.asarray(state.loss)[[0, 2]], np.asarray(history[0].loss)[[0, 2]], atol=1e-5
    )


@pytest.mark.slow
def test_only_usable_labels_count(task, history):
    """The loss of a landmark is the mean over the faces whose labels are known."""
    key, fields = jax.random.key(0), history[-1].best

    def loss(*known: int) -> np.ndarray:
        spread = jnp.full_like(task.bank.spread, jnp.inf)
        spread = spread.at[jnp.asarray(known, jnp.int32)].set(0.0)
        bank = dataclasses.replace(task.bank, spread=spread)
        some = dataclasses.replace(task, bank=bank)
        return np.asarray(held_out_loss(key, some, RENDERED, fields))

    np.testing.assert_allclose(loss(50, 53), (loss(50) + loss(53)) / 2, rtol=1e-4)
    np.testing.assert_array_equal(loss(), np.inf)
    np.testing.assert_array_equal(loss(3), np.inf)  # which is not held out


def test_no_faces_are_refused(task):
    key, none = jax.random.key(0), jnp.zeros(0, jnp.int32)
    start = begin(key, task, RENDERED)
    unlearnt = dataclasses.replace(task, faces=none, flipped=jnp.zeros(0, bool))
    with pytest.raises(ValueError, match="no faces to learn from"):
        run_epoch(key, unlearnt, RENDERED, start)
    untried = dataclasses.replace(
        task, check_faces=none, check_flipped=jnp.zeros(0, bool)
    )
    for judge in (held_out_loss, confidences):
        with pytest.raises(ValueError, match="no held-out faces"):
            judge(key, untried, RENDERED, start.params)
