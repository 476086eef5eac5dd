"""Whole faces: the known answer, many at once, bad input, transformations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclnf.fitting.fit as fit_module
from jaxclnf.fitting.canvas import on_canvas
from jaxclnf.fitting.fit import fit, fit_with_trace
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult
from jaxclnf.shape.initial import params_from_box
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.solver.loop import nu_rlms
from jaxclnf.solver.options import NURLMSOptions, SolverName
from jaxclnf.solver.steps import STEPS, em_step
from jaxclnf.status import Status
from tests import synthetic

TOL = 1e-3  # px; different programs, or starts that differ by rounding
FLOAT32_TOL = 0.05  # px; float32 end to end
ANSWER_TOL = 4.0  # px; at 0.35 px/mm a pixel of a map is 3 px of the image

OPTIONS = FitOptions(window_sizes=(7,), starts=1, max_steps=100)

STARTS = {
    "frontal": {},
    "moved": {"scale": 1.07, "translation": (126.5, 121.0)},
    "turned": {"euler": (0.0, 0.1, 0.0), "translation": (129.0, 119.0)},
    "bent": {"modes": 1.0, "euler": (0.05, -0.1, 0.05)},
    "modes beyond their bounds": {"modes": 5.0},
}


@pytest.fixture(scope="module")
def names() -> dict:
    return _prepared(np.float64)


def _prepared(dtype) -> dict:
    names = dict(synthetic.example(dtype))
    names["model"] = names["model"].prepared(OPTIONS.window_sizes)
    return names


def _start(names: dict, name: str) -> PDMParams:
    changes = {"scale": 1.08, "euler": (0.0, 0.0, 0.0), "modes": 0.0}
    return synthetic.make_params(names["pdm"], **(changes | STARTS[name]))


def _same(a, b) -> None:
    """Every leaf equal to the last bit, NaN to NaN."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _row(result: FitResult, index: int) -> FitResult:
    return jax.tree.map(lambda x: x[index], result)


def _fit(names: dict, boxes=None, *, image=None, options=OPTIONS, **kwargs):
    image = names["image"] if image is None else image
    if boxes is None and "params" not in kwargs:
        boxes = names["box"]
    return fit(names["model"], image, boxes, options=options, **kwargs)


@pytest.fixture(scope="module")
def result(names: dict) -> FitResult:
    return _fit(names)


def test_known_answer(names, result):
    assert result.status == Status.CONVERGED and result.converged
    error = np.asarray(result.landmarks - names["landmarks"])
    assert np.linalg.norm(error, axis=1).max() < ANSWER_TOL
    assert np.linalg.norm(error, axis=1).mean() < ANSWER_TOL / 2
    assert np.all(np.asarray(result.num_steps)[0] > 0)
    assert np.all(np.asarray(result.shape_delta)[0] < 0.005)
    assert np.all(np.asarray(result.gradient_norm)[0] < 0.05)
    assert np.all(np.isfinite(result.landmark_log_likelihoods))
    np.testing.assert_allclose(
        result.log_likelihood, np.mean(result.landmark_log_likelihoods), rtol=1e-12
    )
    assert result.view == 0


def test_skipped_scales_have_no_steps(result):
    """The model has two scales, the options one window."""
    np.testing.assert_array_equal(result.num_steps[1], 0)
    assert np.all(np.isnan(result.shape_delta[1]))
    assert np.all(np.isnan(result.gradient_norm[1]))


@pytest.mark.slow
def test_two_scales_come_nearer(names, result):
    both = _fit(names, options=FitOptions(window_sizes=(9, 7)))
    assert both.converged and np.all(np.asarray(both.num_steps) > 0)
    error = lambda r: np.linalg.norm(np.asarray(r.landmarks - names["landmarks"]))
    assert error(both) < error(result)


@pytest.mark.parametrize("name", ["frontal", "moved", "turned", "bent"])
def test_params_instead_of_boxes(names, name):
    other = _fit(names, params=_start(names, name))
    assert other.converged
    assert np.abs(other.landmarks - names["landmarks"]).max() < ANSWER_TOL


def test_params_of_a_box_are_the_box(names, result):
    start = jax.jit(params_from_box)(names["pdm"], names["box"])
    _same(_fit(names, params=start), result)


def test_params_of_many_faces(names):
    starts = [_start(names, name) for name in STARTS]
    many = _fit(names, params=jax.tree.map(lambda *x: jnp.stack(x), *starts))
    assert many.landmarks.shape == (len(STARTS), 12, 2)
    for i, start in enumerate(starts):
        _same(_row(many, i), _fit(names, params=start))


# Boxes.


def test_one_box_is_a_row_of_many(names, result):
    box = np.asarray(names["box"])
    boxes = np.stack([box + [4, -3, 0, 0], box, box + [-5, 2, 6, -4]])
    many = _fit(names, boxes)
    assert {x.shape[0] for x in jax.tree.leaves(many)} == {3}
    _same(_row(many, 1), result)
    _same(_row(many, 2), _fit(names, boxes[2]))


def test_no_boxes(names, result):
    none = _fit(names, np.zeros((0, 4)))
    assert jax.tree.structure(none) == jax.tree.structure(result)
    for empty, one in zip(jax.tree.leaves(none), jax.tree.leaves(result), strict=True):
        assert empty.shape == (0, *one.shape) and empty.dtype == one.dtype


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint8])
def test_boxes_of_any_type(names, dtype):
    box = np.asarray([60, 65, 140, 115])
    _same(_fit(names, box.astype(dtype)), _fit(names, box.astype(np.float64)))


BAD_BOXES = {
    "nan": (60.0, np.nan, 140.0, 115.0),
    "infinite": (60.0, 65.0, np.inf, 115.0),
    "minus infinite": (-np.inf, 65.0, 140.0, 115.0),
    "no size": (60.0, 65.0, 0.0, 0.0),
    "no width": (60.0, 65.0, 0.0, 115.0),
    "negative": (200.0, 180.0, -140.0, -115.0),
    "one negative side": (200.0, 100.0, 150.0, -1.0),
    "left of the image": (-300.0, 65.0, 140.0, 115.0),
    "below the image": (60.0, 500.0, 140.0, 115.0),
    "very far": (1e30, 1e30, 140.0, 115.0),
    "huge": (1e300, 0.0, 1e308, 1e308),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_bad_boxes(names, result, name):
    boxes = np.stack([names["box"], BAD_BOXES[name], names["box"]])
    many = _fit(names, boxes)
    bad = _row(many, 1)
    assert bad.status == Status.BAD_START
    assert not bad.converged
    assert np.all(np.isnan(bad.landmarks))
    np.testing.assert_array_equal(bad.num_steps, 0)
    assert np.all(np.isnan(bad.shape_delta)) and np.all(np.isnan(bad.gradient_norm))
    for good in (_row(many, 0), _row(many, 2)):
        _same(good, result)


def test_a_box_partly_outside_is_tried(names):
    partly = _fit(names, np.asarray([-70.0, 65.0, 140.0, 115.0]))
    assert partly.status != Status.BAD_START
    assert np.all(np.isfinite(partly.landmarks))


@pytest.mark.parametrize("field", ["scale", "rotation", "translation", "params_local"])
def test_bad_params(names, field):
    start = _start(names, "moved")
    bad = jnp.full_like(getattr(start, field), jnp.nan)
    failed = _fit(names, params=dataclasses.replace(start, **{field: bad}))
    assert failed.status == Status.BAD_START
    assert np.all(np.isnan(failed.landmarks))


def test_arguments_that_cannot_be_meant(names):
    args = names["model"], names["image"]
    with pytest.raises(ValueError, match="either boxes or params"):
        fit(*args)
    with pytest.raises(ValueError, match="either boxes or params"):
        fit(*args, names["box"], params=names["params"])
    with pytest.raises(ValueError, match="window_sizes"):
        fit(*args, names["box"], options=FitOptions(window_sizes=(0, 0)))
    with pytest.raises(ValueError, match="window_sizes"):
        fit(*args, names["box"], options=FitOptions(window_sizes=()))
    with pytest.raises(ValueError, match="window_size is 8"):
        fit(*args, names["box"], options=FitOptions(window_sizes=(8,)))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1, 4), ()])
def test_boxes_of_a_wrong_shape(names, shape):
    with pytest.raises(ValueError, match="boxes have shape"):
        fit_module._fit(
            names["model"], names["image"], np.ones(shape), None, OPTIONS, False
        )


@pytest.mark.parametrize("shape", [(240, 260, 3), (240,), (0, 0), (0, 5)])
def test_images_of_a_wrong_shape(names, shape):
    image = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match="image has shape"):
        fit_module._fit(names["model"], image, names["box"], None, OPTIONS, False)


@pytest.mark.parametrize("image", [None, [[1, 2]], "face.png"])
def test_images_that_are_no_arrays(names, image):
    problem = f"image is (None|a {type(image).__name__}); expected an array"
    with pytest.raises(TypeError, match=problem):
        fit_module._fit(names["model"], image, names["box"], None, OPTIONS, False)


@pytest.mark.parametrize("max_steps", [None, 9])
def test_a_solver_that_there_is_not(names, max_steps):
    options = FitOptions(solver="Newton", max_steps=max_steps)  # type: ignore
    with pytest.raises(ValueError, match="solver is 'Newton'; expected one of newton,"):
        fit(names["model"], names["image"], names["box"], options=options)


@pytest.mark.slow
def test_a_solver_of_ones_own(names, monkeypatch):
    monkeypatch.setitem(STEPS, "mine", em_step)
    shared = {"window_sizes": (7,), "starts": 1, "max_steps": 50}
    own = FitOptions(solver="mine", **shared)  # type: ignore
    _same(
        _fit(names, options=own), _fit(names, options=FitOptions(solver="em", **shared))
    )


@pytest.mark.slow
def test_window_sizes_beyond_the_models_scales_are_ignored(names, result):
    """As the default options, made for models of three or four scales, need."""
    more = FitOptions(window_sizes=(7, 0, 5, 5), starts=1, max_steps=100)
    _same(_fit(names, options=more), result)


# Images.


@pytest.mark.slow
def test_zeros_around_change_nothing(names, result):
    _same(
        _fit(names, image=np.pad(names["image"], ((0, 16), (0, 252)))[:, :256]), result
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_an_image_may_be_overwritten_after_the_call(dtype):
    # JAX takes over some arrays as they are, and works on after the call.
    image = np.ones((256, 256), dtype)
    canvas = on_canvas(image, np.dtype(np.float64))
    assert canvas.shape == image.shape and not np.shares_memory(canvas, image)


@pytest.mark.parametrize("grey", [0, 128])
def test_an_image_without_contrast(names, grey):
    """Nothing pulls but the flat maps; the result is finite and has a status."""
    flat = _fit(names, image=np.full((240, 260), grey, np.uint8))
    assert flat.status in (Status.CONVERGED, Status.NOTHING_VISIBLE)
    assert np.all(np.isfinite(flat.landmarks))


@pytest.mark.slow
def test_an_image_of_one_pixel(names):
    box = np.asarray([-0.5, -0.5, 1.0, 1.0])
    tiny = _fit(names, box, image=np.ones((1, 1), np.uint8))
    assert tiny.status == Status.FACE_TOO_SMALL
    assert np.all(np.isfinite(tiny.landmarks))


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_pixels_silence_their_landmarks(names, value):
    image = names["image"].astype(np.float64)
    x, y = np.rint(np.asarray(names["landmarks"][5])).astype(int)
    image[y - 2 : y + 3, x - 2 : x + 3] = value  # samples are 3 px apart
    fitted = _fit(names, image=image)
    assert fitted.status in (Status.CONVERGED, Status.MAX_STEPS)
    assert np.all(np.isfinite(fitted.landmarks))
    silent = np.asarray(fitted.landmark_log_likelihoods) == -np.inf
    assert silent[5] and not silent.all()
    assert np.isfinite(fitted.log_likelihood)
    assert np.abs(fitted.landmarks - names["landmarks"]).max() < 3 * ANSWER_TOL


@pytest.mark.slow
def test_an_image_of_nan_shows_nothing(names):
    blind = _fit(names, image=np.full((240, 260), np.nan))
    assert blind.status == Status.NOTHING_VISIBLE
    assert np.all(np.isfinite(blind.landmarks))
    assert blind.log_likelihood == -np.inf


def test_a_face_too_small(names):
    options = dataclasses.replace(OPTIONS, min_scale=1.5)
    small = _fit(names, options=options)
    assert small.status == Status.FACE_TOO_SMALL
    assert not small.converged
    assert np.all(np.isfinite(small.landmarks))


def _signature(args) -> tuple:
    leaves, structure = jax.tree.flatten(args)
    kinds = [jax.typeof(x) for x in leaves]
    return str(structure), tuple((x.shape, x.dtype, x.weak_type) for x in kinds)


def test_photographs_of_all_sizes_share_a_few_programs(names, result, monkeypatch):
    """Three powers of two from 256 to 1024, for bytes and for real numbers."""
    programs = set()

    def count(*args):
        programs.add(_signature(args[:-1]))
        return result, None

    monkeypatch.setattr(fit_module, "_fit_one", count)
    shapes = [(a, b) for a in range(100, 1001, 100) for b in range(100, 1001, 150)]
    for dtype in (np.uint8, np.float32, np.float64, np.int16):
        for shape in shapes:
            if max(shape) < 4 * min(shape):
                _fit(names, image=np.zeros(shape, dtype))
    assert len(programs) <= 2 * 3
    for shape in shapes:  # strips have two more for each power above the first
        _fit(names, image=np.zeros(shape, np.uint8))
    assert len(programs) <= 2 * 3 + 2 * 2


@pytest.mark.slow
def test_compilations_are_as_few(names):
    fit_one: Any = fit_module._fit_one
    before = fit_one._cache_size()
    for side in (100, 180, 256, 300, 400, 512, 600, 1000):
        _fit(names, image=np.zeros((side, side), np.uint8))
    assert fit_one._cache_size() - before <= 3


# Transformations.


@pytest.fixture(scope="module")
def compiled(names: dict):
    """`fit` of many boxes inside `vmap` and `jit`."""
    one = lambda image, box: _fit(names, box, image=image)
    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


@pytest.fixture(scope="module")
def boxes(names: dict) -> np.ndarray:
    offsets = [[0, 0, 0, 0], [5, -3, 2, 0], [-6, 4, 0, 9], [2, 2, -8, 1]]
    return np.asarray(names["box"]) + np.asarray(offsets, np.float64)


@pytest.mark.slow
def test_vmap_is_a_loop(names, compiled, boxes):
    batch = compiled(names["image"], boxes)
    loop = _fit(names, boxes)
    np.testing.assert_array_equal(batch.status, loop.status)
    assert np.abs(batch.landmarks - loop.landmarks).max() < TOL


@pytest.mark.slow
def test_a_bad_face_in_a_batch_leaves_the_others_alone(names, compiled, boxes):
    batch = compiled(names["image"], boxes)
    for bad in BAD_BOXES.values():
        spoilt = boxes.copy()
        spoilt[1] = bad
        other = compiled(names["image"], spoilt)
        assert other.status[1] == Status.BAD_START
        for i in (0, 2, 3):
            _same(_row(other, i), _row(batch, i))


@pytest.mark.slow
def test_batches_inside_jit(names, boxes):
    run = jax.jit(lambda image, boxes: _fit(names, boxes, image=image))
    loop = _fit(names, boxes)
    inside = run(names["image"], boxes)
    assert np.abs(inside.landmarks - loop.landmarks).max() < TOL


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
def test_jit_around_known_arguments(names, boxes, result, batched):
    """Nothing is traced but the surroundings."""
    run = jax.jit(lambda: _fit(names, boxes if batched else boxes[0]).landmarks)
    landmarks = run()[0] if batched else run()
    assert np.abs(landmarks - result.landmarks).max() < TOL


@pytest.fixture(scope="module")
def landmarks_of(names: dict):
    """The landmarks as a function of image and start."""
    options = FitOptions(window_sizes=(7,), max_steps=40)

    def landmarks(image, params):
        return fit(names["model"], image, params=params, options=options).landmarks

    return landmarks


@pytest.fixture(scope="module")
def derivative(names: dict, landmarks_of) -> tuple:
    """Along random changes of the image, and of the start."""
    point = jnp.asarray(names["image"], float), _start(names, "moved")
    noise = jnp.asarray(np.random.default_rng(0).normal(size=point[0].shape))
    still_image, still_start = jax.tree.map(jnp.zeros_like, point)
    push = jax.jit(lambda d: jax.jvp(landmarks_of, point, d)[1])
    along_image = push((noise, still_start))
    along_start = push((still_image, jax.tree.map(jnp.ones_like, still_start)))
    return point, noise, np.asarray(along_image), np.asarray(along_start)


@pytest.mark.slow
def test_derivatives_forward_are_finite(derivative):
    _, _, along_image, along_start = derivative
    assert np.all(np.isfinite(along_image)) and np.all(np.isfinite(along_start))
    assert np.abs(along_image).max() > 0


@pytest.mark.slow
def test_derivatives_against_differences(landmarks_of, derivative):
    (image, start), noise, along_image, _ = derivative
    step = 1e-5
    run = jax.jit(lambda s: landmarks_of(image + s * noise, start))
    difference = np.asarray(run(step) - run(-step)) / (2 * step)
    size = np.abs(difference).max()
    np.testing.assert_allclose(along_image, difference, rtol=0, atol=1e-3 * size)


@pytest.mark.slow
def test_derivatives_in_reverse(names):
    # Parts begin with a loop of unknown length, which has no reverse.
    options = FitOptions(window_sizes=(7,), max_steps=4, use_parts=False, starts=1)

    def first(image, box):
        result, _ = fit_with_trace(names["model"], image, box, options=options)
        return result.landmarks[0, 0]

    image = jnp.asarray(names["image"], float)
    slopes = jax.jit(jax.grad(first, argnums=(0, 1)))(image, names["box"])
    for slope in slopes:
        assert np.all(np.isfinite(slope)) and np.abs(slope).max() > 0


# float32.


@pytest.fixture(scope="module")
def low() -> dict:
    return _prepared(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_float32_against_float64(names, low, name):
    found = _fit(low, params=_start(low, name))
    expected = _fit(names, params=_start(names, name))
    floats = [
        x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert found.converged
    difference = np.asarray(found.landmarks) - np.asarray(expected.landmarks)
    assert np.abs(difference).max() < FLOAT32_TOL


def test_float64_stays_float64(result):
    floats = [
        x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert {x.dtype for x in floats} == {jnp.dtype("float64")}


@pytest.mark.slow
def test_float32_in_the_far_corner_of_a_large_photograph(low):
    """Absolute coordinates resolve 5e-4 px there, and the fit works on its own."""
    image = np.zeros((1300, 5000), np.uint8)
    image[1000:1240, 4700:4960] = low["image"]
    box = np.round(np.asarray(low["box"]) * 4) / 4  # exact in float32, there and here
    offset = np.asarray([4700, 1000], np.float32)
    near = _fit(low, box)
    far = _fit(
        low, box + np.concatenate([offset, [0, 0]]).astype(np.float32), image=image
    )
    assert far.status == near.status == Status.CONVERGED
    difference = np.asarray(far.landmarks, float) - offset - np.asarray(near.landmarks)
    assert np.abs(difference).max() < TOL


@pytest.mark.parametrize(
    "name, value",
    [
        ("sigma", 0.0),
        ("sigma", np.float32("nan")),
        ("sigma", float("inf")),
        ("reg_factor", -25),
        ("reg_scale", 0.0),
        ("weight_factor", float("nan")),
        ("shape_tol", -0.005),
        ("n_sigmas", -1.0),
        ("min_scale", float("nan")),
        ("pass_tol", -1.0),
    ],
)
def test_numbers_that_mean_nothing_are_refused(name: str, value: Any):
    with pytest.raises(ValueError, match=f"^{name} is {value}; expected "):
        dataclasses.replace(FitOptions(), **{name: value})
    with pytest.raises(ValueError, match=f"^{name} is "):
        dataclasses.replace(FitOptions.openface(), **{name: value})
    if name in {field.name for field in dataclasses.fields(NURLMSOptions)}:
        with pytest.raises(ValueError, match=f"^{name} is "):
            dataclasses.replace(NURLMSOptions(), **{name: value})
    # Arrays may not be known yet, nor what JAX puts into their places.
    dataclasses.replace(FitOptions(), **{name: jnp.asarray(value)})
    jax.tree.map(lambda _: None, FitOptions())


@pytest.mark.parametrize("solver", ["newton", "em", "openface"])
def test_such_numbers_in_arrays_end_in_a_failure(names: dict, solver: SolverName):
    problem = names["pdm"], names["responses"], names["params"]
    bad = {"sigma": [-1.0, 0.0], "reg_factor": [-25.0], "n_sigmas": [-1.0]}
    bad |= {"reg_scale": [0.0, -0.7]}
    maps = names["responses"]

    @jax.jit
    def status(options: FitOptions) -> jax.Array:
        at_scale = options.at_scale(jnp.asarray(0.35), maps.img_from_ref)
        return nu_rlms(*problem, at_scale).status

    known = FitOptions(solver=solver, max_steps=100)
    arrays = {name: jnp.asarray(getattr(known, name)) for name in bad}
    known = dataclasses.replace(known, **arrays)
    assert status(known) in (Status.CONVERGED, Status.MAX_STEPS)
    for name, values in bad.items():
        for value in values:
            changed = dataclasses.replace(known, **{name: jnp.asarray(value)})
            assert status(changed) == Status.NONFINITE, (name, value)


def test_a_bandwidth_that_a_coarse_scale_makes_negative_is_none():
    """Its square alone would hide that."""
    coarse = jnp.asarray(0.2)
    assert FitOptions(sigma=0.1).at_scale(coarse).sigma > 0
    assert jnp.isnan(FitOptions(sigma=0.05).at_scale(coarse).sigma)


@pytest.mark.slow
def test_an_image_in_another_order_of_bytes(names):
    """NumPy's, inside of `jax.jit` too."""

    def run(box):
        return fit(names["model"], names["image"].astype(">u2"), box, options=OPTIONS)

    found = jax.jit(run)(names["box"]).landmarks
    np.testing.assert_allclose(found, run(names["box"]).landmarks, atol=1e-3)


@pytest.mark.slow
def test_a_bad_box_leaves_the_others_their_derivatives(names: dict):
    """By options, image and model that all share, in reverse, through the whole fit."""
    grey, truth = jnp.asarray(names["image"], float), names["landmarks"]

    def error(shared: tuple, box: jax.Array) -> jax.Array:
        numbers, grey, pdm, weights = shared
        sigma, reg_factor, reg_scale = numbers
        options = FitOptions(
            window_sizes=(7,),
            starts=1,
            max_steps=2,
            sigma=sigma,
            reg_factor=reg_factor,
            reg_scale=reg_scale,
        )
        coarse, *others = names["model"].experts
        coarse = dataclasses.replace(coarse, weights=weights)
        model = names["model"]
        model = dataclasses.replace(model, pdm=pdm, experts=(coarse, *others))
        result, _ = fit_with_trace(model, grey, box, options=options)
        off = jnp.sum((result.landmarks - truth) ** 2)
        return jnp.where(result.status >= Status.NONFINITE, 0, off)

    numbers = jnp.asarray([1.5, 25.0, 0.7])
    bad = jnp.asarray([[jnp.nan] * 4, [0.0, 0.0, -5.0, 5.0]])
    boxes = jnp.concatenate([names["box"][None], bad])
    shared = numbers, grey, names["pdm"], names["model"].experts[0].weights
    slopes = jax.jit(jax.vmap(jax.grad(error), in_axes=(None, 0)))(shared, boxes)
    assert (slopes[0][0] != 0).all()
    for slope in jax.tree.leaves(slopes):
        assert np.isfinite(slope).all() and slope[0].any()
        np.testing.assert_array_equal(slope[1:], 0)
