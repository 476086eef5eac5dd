"""Programs whose traces are kept do what `jax.jit` does, and are traced once."""

import copy
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.pytree import pytree_dataclass, static
from jaxclnf.shelf import use_shelf
from jaxclnf.tracing import is_traced, traced_once


class Memory:
    """A shelf in memory."""

    def __init__(self) -> None:
        self.programs: dict[tuple[str, str], bytes] = {}

    def get(self, name: str, key: str) -> bytes | None:
        return self.programs.get((name, key))

    def put(self, name: str, key: str, program: bytes) -> None:
        assert (name, key) not in self.programs
        self.programs[name, key] = program


@pytree_dataclass
class Line:
    """A pytree with a static part."""

    slope: jax.Array
    name: str = static(default="line")


class Ends(NamedTuple):
    """Results of several kinds."""

    line: Line
    rest: dict[str, Any]


def shrink(x: Any, line: Line) -> jax.Array:
    return line.slope * x


def grow(x: Any, line: Line) -> jax.Array:
    return x / line.slope


GROW = grow
"""The same by another name."""

TRACED = []
"""An entry for each time that the function below was traced."""


def ends(x: Any, line: Line, way: Any = shrink, times: int = 2) -> Ends:
    TRACED.append(times)
    for _ in range(times):
        x = jnp.sin(way(x, line))
    rest = {"none": None, "sum": jnp.sum(x), "turns": jnp.asarray(times, jnp.int32)}
    return Ends(line=Line(slope=x, name="end"), rest=rest)


def new_process() -> Any:
    """The function in a process that has traced nothing."""
    return traced_once("way", "times")(ends)


@pytest.fixture
def shelf() -> Iterator[Memory]:
    memory = Memory()
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", True)
    use_shelf(memory)
    TRACED.clear()
    yield memory
    use_shelf(None)
    jax.config.update("jax_enable_compilation_cache", enabled)


X = np.linspace(0, 1, 5)
LINE = Line(slope=jnp.asarray(0.5, jnp.float64))


def test_it_is_traced_once(shelf: Memory) -> None:
    first = new_process()(X, LINE)
    assert len(TRACED) == len(shelf.programs) == 1
    again = new_process()(X, LINE)
    assert len(TRACED) == len(shelf.programs) == 1
    expected = jax.jit(ends)(X, LINE)
    for found in (first, again):
        chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
        chex.assert_trees_all_equal(found, expected)
        assert found.line.name == "end" and found.rest["none"] is None


def test_without_a_shelf_it_is_jit() -> None:
    run = new_process()
    for _ in range(2):
        chex.assert_trees_all_equal(run(X, LINE), jax.jit(ends)(X, LINE))
    assert run._cache_size() == 1


OTHERS = {
    "a shape": (X[:4], LINE),
    "a number type": (X.astype(np.float32), Line(slope=jnp.asarray(0.5, jnp.float32))),
    "a weak type": (0.5, LINE),
    "no weak type": (np.float64(0.5), LINE),
    "a static field": (X, Line(slope=LINE.slope, name="other")),
    "a static function": (X, LINE, grow),
    "a static number": (X, LINE, shrink, 3),
}


def test_what_differs_is_another_program(shelf: Memory) -> None:
    new_process()(X, LINE)
    for number, args in enumerate(OTHERS.values(), start=2):
        new_process()(*args)
        found = new_process()(*args)
        assert len(TRACED) == len(shelf.programs) == number
        expected = jax.jit(ends, static_argnums=(2, 3))(*args)
        chex.assert_trees_all_equal(found, expected)
        del TRACED[number:]  # by `jax.jit`


def test_names_of_arguments_do_not_matter(shelf: Memory) -> None:
    new_process()(X, line=LINE, times=3)
    new_process()(X, LINE, times=3)
    assert len(TRACED) == len(shelf.programs) == 1


def test_settings_are_part_of_the_key(shelf: Memory) -> None:
    new_process()(X, LINE)
    with jax.default_matmul_precision("highest"):
        new_process()(X, LINE)
    assert len(shelf.programs) == 2


DEBUGGING = [
    "jax_check_tracer_leaks",
    "jax_debug_infs",
    "jax_debug_nans",
    "jax_disable_jit",
    "jax_enable_checks",
]


@pytest.mark.parametrize("name", DEBUGGING)
def test_where_functions_are_looked_into_nothing_is_kept(
    shelf: Memory, name: str
) -> None:
    jax.config.update(name, True)
    try:
        new_process()(X, LINE)
    finally:
        jax.config.update(name, False)
    assert TRACED and not shelf.programs


def test_without_a_cache_nothing_is_kept(shelf: Memory) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    new_process()(X, LINE)
    assert TRACED and not shelf.programs


def scaled_by(factor: float) -> Any:
    @functools.wraps(shrink)
    def way(x: Any, line: Line) -> jax.Array:
        return factor * shrink(x, line)

    return way


def test_functions_that_no_text_tells_apart_are_not_kept(
    shelf: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_process()(X, LINE, lambda x, line: x + line.slope)
    new_process()(X, LINE, scaled_by(2.0))
    monkeypatch.setitem(globals(), "grow", shrink)
    new_process()(X, LINE, GROW)
    traced_once()(lambda x: 2 * x)(X)
    assert not shelf.programs
    monkeypatch.undo()
    monkeypatch.setattr(grow, "__module__", np.__name__)
    monkeypatch.setattr(np, "grow", grow, raising=False)
    new_process()(X, LINE, grow)
    assert not shelf.programs
    monkeypatch.undo()
    new_process()(X, LINE, GROW)
    assert shelf.programs


def test_with_classes_of_others_they_are_not_kept(
    shelf: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "__module__", "another.module")
    new_process()(X, LINE)
    assert not shelf.programs
    monkeypatch.undo()
    new_process()(X, LINE)
    assert shelf.programs


def told(x: Any) -> jax.Array:
    jax.debug.print("x is {x}", x=x)
    return 2 * x


def doubled(x: Any) -> jax.Array:
    return x * 2


def with_callback(x: Any) -> jax.Array:
    return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def with_callback_in_a_loop(x: Any) -> jax.Array:
    return jax.jit(lambda x: jax.lax.map(with_callback, x))(x)


def of_a_library(x: Any) -> jax.Array:
    return jax.ffi.ffi_call("none_such", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def test_what_a_text_cannot_hold_is_not_kept(
    shelf: Memory, capfd: pytest.CaptureFixture[str]
) -> None:
    traced_once()(told)(X)
    jax.effects_barrier()
    assert "x is [0." in capfd.readouterr().out
    assert traced_once()(doubled)(0.5).weak_type
    for function in (with_callback, with_callback_in_a_loop):
        assert traced_once()(function)(X).tolist() == X.tolist()
    with pytest.raises(jax.errors.JaxRuntimeError, match="none_such"):
        traced_once()(of_a_library)(X)
    assert not shelf.programs


class Local(NamedTuple):
    """Results of a class that there is in this process only."""

    x: Any


def in_a_class(x: Any) -> Local:
    return Local(2 * x)


def test_results_of_classes_of_others_are_not_kept(
    shelf: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Local, "__module__", "another.module")
    assert traced_once()(in_a_class)(X).x.tolist() == (2 * X).tolist()
    assert not shelf.programs


def test_on_accelerators_nothing_is_kept(
    shelf: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    new_process()(X, LINE)
    assert not shelf.programs


def test_arguments_without_names_are_refused() -> None:
    for function in (lambda x, /: x, lambda *x: x, lambda **x: x):
        with pytest.raises(TypeError, match="found argument .*x.* of .*lambda"):
            traced_once()(function)


def refusing(x: Any) -> jax.Array:
    raise ValueError("found this, expected that")


def test_errors_are_those_of_the_function(shelf: Memory) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="^found this, expected that"):
            traced_once()(refusing)(X)
    assert not shelf.programs


def first_of(x: Any, rest: Any) -> tuple[jax.Array, Any]:
    return 2 * x, rest[0]


def test_arguments_that_are_not_used_are_no_inputs(shelf: Memory) -> None:
    run = traced_once()(first_of)
    for again in (run, traced_once()(first_of)):
        twice, same = again(X, (X + 1, X + 2))
        assert (twice.tolist(), same.tolist()) == ((2 * X).tolist(), (X + 1).tolist())
    text = run._kept.lower(X, (X + 1, X + 2)).compile().as_text()
    assert text is not None and "parameter(1)" in text and "parameter(2)" not in text


def test_in_a_mesh_nothing_is_kept(shelf: Memory) -> None:
    mesh = jax.make_mesh((1,), ("d",), (jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        new_process()(X, LINE)
    spread = jax.device_put(X, jax.NamedSharding(mesh, jax.P("d")))
    new_process()(spread, LINE)
    assert not shelf.programs
    chex.assert_trees_all_equal(new_process()(X, LINE), jax.jit(ends)(X, LINE))
    assert shelf.programs


def test_threads_may_trace_the_same(shelf: Memory) -> None:
    shelf.put = lambda name, key, program: shelf.programs.update({(name, key): program})
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: new_process()(X, LINE), range(8)))
    assert len(shelf.programs) == 1
    for one in found:
        chex.assert_trees_all_equal(one, found[0])


def test_transformations_pass(shelf: Memory) -> None:
    run = new_process()

    def total(function: Any, x: Any, slope: Any) -> Any:
        ended = function(x, Line(slope=slope))
        return ended.rest["sum"] * ended.rest["turns"].astype(float)

    x, slopes = X[1:], np.array([0.5, 2.0])
    rows, slope = np.stack([x, x + 1, x + 2]), slopes[0]
    for transform, args in (
        (jax.jit, (x, slope)),
        (lambda f: jax.vmap(f, (0, None)), (rows, slope)),
        (lambda f: jax.vmap(jax.vmap(f, (0, None)), (None, 0)), (rows, slopes)),
        (jax.grad, (x, slope)),
        (lambda f: jax.jacfwd(f, argnums=1), (x, slope)),
        (lambda f: jax.vmap(jax.hessian(f), (0, None)), (rows, slope)),
    ):
        found, expected = (
            transform(partial(total, function))(*args) for function in (run, ends)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert np.shape(found) == np.shape(expected) and np.abs(found).max() > 0.01
    assert not shelf.programs


def test_results_are_bound_to_no_device(shelf: Memory) -> None:
    # Else what comes of them could not meet arrays of another device, and a program
    # that takes its own results would be compiled twice.
    run = new_process()
    ended = run(X, LINE)
    for _ in range(2):
        ended = run(ended.line.slope, LINE)
    assert run._kept._cache_size() == 2  # of NumPy's array and of JAX's
    assert not ended.line.slope.committed


def test_it_is_a_jitted_function(shelf: Memory) -> None:
    run = new_process()
    assert run.eval_shape(X, LINE).line.slope.shape == (5,)
    assert "sine" in run.lower(X, LINE).as_text()
    assert run.__name__ == "ends" and copy.copy(run) is not run


def test_is_traced() -> None:
    found = []

    def new() -> Any:
        def look(x: Any) -> Any:
            found.append(is_traced())
            return jnp.sum(x)

        return look

    new()(X)
    with ThreadPoolExecutor(1) as other:
        other.submit(new(), X).result()
    with jax.disable_jit():
        new()(X)
    assert found == [False] * 3
    found.clear()
    for inside in (
        lambda look: jax.jit(look)(X),
        lambda look: jax.jit(lambda: look(X))(),
        lambda look: jax.vmap(look)(X),
        lambda look: jax.vmap(lambda x: look(X) + x)(X),
        lambda look: jax.grad(look)(X),
        lambda look: jax.grad(lambda x: look(X) * x)(1.0),
        lambda look: jax.jvp(look, (X,), (X,)),
        lambda look: jax.vjp(look, X),
        lambda look: jax.linearize(look, X),
        lambda look: jax.eval_shape(look, X),
        lambda look: jax.lax.map(look, X),
    ):
        inside(new())
        assert found and all(found)
        found.clear()
