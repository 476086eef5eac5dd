"""Programs whose traces are kept do what `jax.jit` does, and are traced once."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.pytree import pytree_dataclass, static
from jaxclnf.shelf import use_shelf
from jaxclnf.traced_once import traced_once


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


TRACED = []
"""Arguments of each time that the function below was traced."""


def ends(x: Any, line: Line, way: Any = shrink, times: int = 2) -> Ends:
    TRACED.append((x, line, way, times))
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


@pytest.mark.parametrize("name", ["jax_debug_nans", "jax_disable_jit"])
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


def test_functions_without_a_name_of_their_own_are_not_kept(shelf: Memory) -> None:
    new_process()(X, LINE, lambda x, line: x + line.slope)
    traced_once()(lambda x: 2 * x)(X)
    assert not shelf.programs


def test_with_classes_of_others_they_are_not_kept(
    shelf: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "__module__", "another.module")
    new_process()(X, LINE)
    assert not shelf.programs
    monkeypatch.undo()
    new_process()(X, LINE)
    assert shelf.programs


@pytest.mark.parametrize("from_shelf", [False, True])
def test_transformations_pass(shelf: Memory, from_shelf: bool) -> None:
    run = new_process()
    if from_shelf:
        run(X, LINE)

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


def test_results_are_bound_to_no_device(shelf: Memory) -> None:
    # Else what comes of them could not meet arrays of another device, and a program
    # that takes its own results would be compiled twice.
    run = new_process()
    ended = run(X, LINE)
    for _ in range(2):
        ended = run(ended.line.slope, LINE)
    assert run._cache_size() == 2  # of NumPy's array and of JAX's
    assert not ended.line.slope.committed


def test_elsewhere_the_function_is_lowered(shelf: Memory) -> None:
    traced = new_process().trace(X, LINE)
    assert "call_exported" in traced.lower().as_text()
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "sine" in cuda and "call_exported" not in cuda


def test_it_is_a_jitted_function(shelf: Memory) -> None:
    run = new_process()
    assert run.eval_shape(X, LINE).line.slope.shape == (5,)
    assert run.__name__ == "ends"
