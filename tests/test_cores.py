"""Programs side by side on the cores of a CPU, and starts shared among them."""

import dataclasses
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.fitting import cores, separate
from jaxclnf.fitting.cores import on_all_cores, one_ahead
from jaxclnf.fitting.face import fit_face
from jaxclnf.fitting.hypotheses import starts_from_box
from jaxclnf.fitting.model import EarlyTermination
from jaxclnf.fitting.options import FitOptions
from jaxclnf.status import Status
from jaxclnf.tracing import is_traced
from tests import synthetic

TOL = 1e-9  # px, float64: other programs round in another way

NEWTON = FitOptions(window_sizes=(9, 7), starts=4, finished_starts=2, short_search=2)
OPENFACE = dataclasses.replace(
    FitOptions.openface(parts=False, starts=4), window_sizes=(9, 7)
)


@pytest.fixture(autouse=True)
def three_cores(monkeypatch):
    for module in (cores, separate):
        monkeypatch.setattr(module, "num_cores", lambda: 3)


def test_results_are_in_order_and_come_from_threads():
    at_once = threading.Barrier(3, timeout=20)
    seen = set()

    @jax.jit
    def program(x):
        return 2 * x

    class Result:
        """Is waited for outside of the lock, where the three meet."""

        def __init__(self, value):
            self.value = value

        def block_until_ready(self):
            seen.add(threading.get_ident())
            at_once.wait()
            return self.value.block_until_ready()

    found = on_all_cores(lambda x: Result(program(x)), [1.0, 2.0, 3.0])
    assert [float(one.value) for one in found] == [2, 4, 6]
    assert len(seen) == 3 and threading.get_ident() not in seen


def test_a_device_gets_the_next_work_before_results_are_looked_at():
    begun = []
    results = one_ahead(lambda x: begun.append(x) or -x, [1, 2, 3])
    seen = [(result, len(begun)) for result in results]
    assert seen == [(-1, 2), (-2, 3), (-3, 3)]
    assert list(one_ahead(abs, [])) == []


def test_what_the_caller_chose_holds():
    def kind(_):
        return jnp.zeros(1)

    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        narrow = on_all_cores(kind, range(4))
    wide = on_all_cores(kind, range(4))
    assert [x.dtype for x in narrow] == [jnp.float32] * 4
    assert [x.dtype for x in wide] == [jnp.float64] * 4


def test_what_the_caller_wants_to_be_told_holds():
    values = jnp.asarray([1.0, 0.0, 1.0, 1.0])
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        on_all_cores(lambda k: jnp.log(-values[k]) * 0, range(4))

    def is_in_program(k):
        return jax.jit(lambda x: jnp.asarray(is_traced()) & (x > -1))(values[k])

    with jax.disable_jit():
        assert not any(on_all_cores(is_in_program, range(4)))
    assert all(on_all_cores(is_in_program, range(4)))


def test_an_error_is_not_lost():
    def fail(k):
        if k == 2:
            raise ValueError("third item")
        return jnp.asarray(k)

    with pytest.raises(ValueError, match="third item"):
        on_all_cores(fail, range(4))


# One function for all tests, so that equal programs are compiled once.
_fit_face = jax.jit(partial(fit_face, with_trace=True))


def _both(names: dict, options: FitOptions, model=None, box=None) -> tuple:
    model = names["model"] if model is None else model
    image = jnp.asarray(names["image"])
    size = np.asarray(image.shape, np.int32)
    box = jnp.asarray(names["box"] if box is None else box)
    starts = starts_from_box(model.pdm, box, options.starts)
    args = model, image, size, starts, options
    return _fit_face(*args), separate.fit_face_separately(*args, with_trace=True)


def _alike(one, several) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(several)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=TOL)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(NEWTON, id="a short search and the likeliest two"),
        pytest.param(OPENFACE, id="all"),
    ],
)
def test_shared_starts_are_those_of_one_program(options: FitOptions):
    one, several = _both(synthetic.example(), options)
    assert several[0].start_log_likelihoods.shape == (options.num_starts,)
    finished = options.finished_starts or options.num_starts
    assert np.isfinite(several[0].start_log_likelihoods).sum() == finished
    _alike(one, several)


@pytest.mark.slow
def test_a_search_that_stops_early():
    """The first start alone where it is good enough, else three."""
    names = synthetic.example()
    views = names["model"].experts[0].view_centers.shape[0]
    for cutoff, finished in ((-1e9, 1), (1e9, 3)):
        early = EarlyTermination(
            weights=jnp.ones(views),
            biases=jnp.zeros(views),
            cutoffs=jnp.asarray([cutoff] * views),
        )
        model = dataclasses.replace(names["model"], early_termination=early)
        one, several = _both(names, OPENFACE, model)
        assert np.isfinite(several[0].start_log_likelihoods).sum() == finished
        _alike(one, several)


@pytest.mark.slow
def test_a_bad_box_ends_at_once():
    one, several = _both(synthetic.example(), OPENFACE, box=[0.0, 0.0, -5.0, 5.0])
    assert several[0].status == Status.BAD_START
    _alike(one, several)
