"""Whether JAX is tracing, and programs that it need not trace in each process.

JAX keeps compiled programs, but finds one by its text, which each process has to make
anew: of the 5 s that a photograph takes, 2.6 s to trace and lower the fit and .7 s to
load it. Here the text is kept as well, on the process's shelf if it has one, under a
key that is known without it.
"""

import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, get_opaque_trace_state, subjaxprs
from jax.interpreters import mlir

from jaxclnf.shelf import Shelf, shelf_in_use

if TYPE_CHECKING:
    from jax.export import Exported

_DEBUGGING = (
    "jax_check_tracer_leaks",
    "jax_debug_infs",
    "jax_debug_nans",
    "jax_disable_jit",
    "jax_enable_checks",
)
"""Where one of these is set, the function itself has to be run."""
_OUTSIDE = ("ffi_call", "io_callback", "pure_callback")
"""Primitives that call what is not JAX."""
_WITH_NAMES = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


def is_traced() -> bool:
    """Whether what is done here becomes part of a program, or of a derivative.

    To look for tracers among all arrays of a model would take .3 ms of each fit.

    Returns:
        Whether JAX is tracing: inside `jax.jit`, `jax.vmap`, `jax.jvp`, ..., even where
        `jax.ensure_compile_time_eval` has some of it done at once.

    Example:
        >>> is_traced(), bool(jax.jit(lambda: jnp.asarray(is_traced()))())
        (False, True)
    """
    return get_opaque_trace_state() != _state_at_rest()


@functools.cache
def _state_at_rest() -> Any:
    """What JAX is in where it is tracing nothing, as in each new thread."""
    with ThreadPoolExecutor(1) as new:
        return new.submit(get_opaque_trace_state).result()


def traced_once(*static_argnames: str) -> Callable[[Callable], Any]:
    """`jax.jit`, whose traces are kept on the process's shelf.

    Without a shelf, inside other transformations, on accelerators, in a mesh and in
    debugging modes of JAX it is `jax.jit` and nothing else. What tracing prints, or
    warns of, is heard once too.

    Args:
        *static_argnames: Names of the arguments that are no arrays.

    Returns:
        What makes a `TracedOnce` of a function.

    Example:
        >>> @traced_once("twice")
        ... def total(x, twice=False):
        ...     return jnp.sum(2 * x if twice else x)
        >>> float(total(jnp.ones(3), twice=True))
        6.0
    """
    return functools.partial(TracedOnce, static_argnames=static_argnames)


class TracedOnce:
    """A jitted function whose traces are kept; see `traced_once`."""

    def __init__(self, function: Callable, static_argnames: tuple[str, ...]) -> None:
        """Takes a function.

        Args:
            function: One of a module, with a name for each argument. What it does may
                depend on these, on the package's source and on JAX's settings only.
            static_argnames: Names of those that are no arrays.

        Raises:
            TypeError: An argument has no name to be given by.
        """
        functools.update_wrapper(self, function)
        signature = inspect.signature(function)
        for argument in signature.parameters.values():
            if argument.kind not in _WITH_NAMES:
                raise TypeError(
                    f"found argument {argument} of {function.__qualname__}; expected "
                    "such as can be given by name"
                )

        @functools.wraps(function)
        def kept(*args: Any, **kwargs: Any) -> Any:
            shelf, given = shelf_in_use(), signature.bind(*args, **kwargs).arguments
            static = {k: given.pop(k) for k in static_argnames if k in given}
            program = None
            if shelf is not None and _may_be_kept(function, given, static):
                program = _find(shelf, function, given, static)
            if program is None:
                return function(*args, **kwargs)
            return _run(*program, jax.tree.leaves(given))

        self._kept = jax.jit(kept, static_argnames=static_argnames)
        self._anew = jax.jit(function, static_argnames=static_argnames)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's results, or the errors that it raises."""
        from_shelf = shelf_in_use() is not None and not is_traced()
        return (self._kept if from_shelf else self._anew)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """All else that a jitted function has: `lower`, `trace`, `eval_shape`."""
        if name.startswith("__"):  # of which copying asks before there is anything
            raise AttributeError(name)
        return getattr(self._anew, name)


def _may_be_kept(
    function: Callable, given: dict[str, Any], static: dict[str, Any]
) -> bool:
    settings, package = jax.config.values, _package(function)
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(given)]
    return (
        jax.default_backend() == "cpu"
        and all(mesh.empty for mesh in (jax.sharding.get_abstract_mesh(), *meshes))
        and settings["jax_enable_compilation_cache"]
        and not any(settings[name] for name in _DEBUGGING)
        and _has_text(function, package)
        and all(_has_text(value, package) for value in static.values())
        and _is_built_of(jax.tree.structure(given), _known(function))
    )


def _known(function: Callable) -> set[str]:
    return {_package(function), _package(dict)}


def _package(of: Any) -> str:
    return of.__module__.partition(".")[0]


def _has_text(static: Any, package: str) -> bool:
    """Whether it is told from others by a text that is the same in all processes."""
    if not isinstance(static, FunctionType):
        return isinstance(static, bool | int | float | str | None)
    # None made in another function, not even by a decorator, nor put in its place.
    home = vars(sys.modules[static.__module__]).get(static.__qualname__)
    is_home = callable(home) and inspect.unwrap(home) is static
    return is_home and _package(static) == package


def _is_built_of(tree: Any, packages: set[str]) -> bool:
    """Whether all its classes are of packages whose source is known."""
    node = tree.node_data()
    if node is not None and _package(node[0]) not in packages:
        return False
    return all(_is_built_of(child, packages) for child in tree.children())


def _text(static: Any) -> str:
    if isinstance(static, FunctionType):
        return f"{static.__module__}.{static.__qualname__}"
    return repr(static)


def _find(
    shelf: Shelf, function: Callable, given: dict[str, Any], static: dict[str, Any]
) -> tuple["Exported", Any] | None:
    """The program and the structure of its results; None: it cannot be kept."""
    from jax import export  # takes its time, and few processes need it

    leaves, tree = jax.tree.flatten(given)
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in leaves
    ]
    name = _text(function)
    texts = {k: _text(v) for k, v in static.items()}
    # Few of them matter; where and when compiled programs are kept does not.
    settings = [
        f"{k} {v}" for k, v in sorted(jax.config.values.items()) if "cache" not in k
    ]
    key = "\n".join(map(str, (name, texts, tree, shapes, settings)))
    kept = shelf.get(name, key)
    if kept is None:
        kept = _traced(function, tree, shapes, static)
        if kept is None:
            return None
        shelf.put(name, key, kept)
    # To be trusted as the compiled programs that JAX loads from beside it.
    text, numbered = pickle.loads(kept)
    return export.deserialize(bytearray(text)), jax.tree.structure(numbered)


def _traced(
    function: Callable, tree: Any, shapes: list, static: dict[str, Any]
) -> bytes | None:
    from jax import export

    structures = []

    def of_leaves(*leaves: Any) -> list:
        results = function(**jax.tree.unflatten(tree, leaves), **static)
        arrays, structure = jax.tree.flatten(results)
        structures.append(structure)
        return arrays

    of_leaves.__name__ = function.__name__
    jitted = jax.jit(of_leaves)
    traced = jitted.trace(*shapes).jaxpr
    # What it does by the way, and weak types, would be lost.
    if traced.effects or any(x.weak_type for x in traced.out_avals):
        return None
    if _leaves_jax(traced.jaxpr):
        return None
    exported = export.export(jitted)(*shapes)
    (structure,) = structures
    if exported.nr_devices > 1 or not _is_built_of(structure, _known(function)):
        return None
    # A structure of classes of our own cannot be pickled, what has it can.
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    return pickle.dumps((bytes(exported.serialize()), numbered))


def _leaves_jax(jaxpr: Any) -> bool:
    """Whether it calls what no text can hold: Python, or a library."""
    return any(eqn.primitive.name in _OUTSIDE for eqn in jaxpr.eqns) or any(
        map(_leaves_jax, subjaxprs(jaxpr))
    )


def _run(exported: "Exported", structure: Any, leaves: Sequence) -> Any:
    used = [leaves[i] for i in exported.module_kept_var_idx]
    return jax.tree.unflatten(structure, _program.bind(*used, exported=exported))


# With `Exported.call` in it, a program would bind its results to the device.
_program = Primitive("traced_once")
_program.multiple_results = True


@_program.def_abstract_eval
def _shapes(*_: Any, exported: "Exported") -> Sequence:
    return exported.out_avals


def _call(*used: Any, exported: "Exported") -> Any:
    leaves = [jnp.zeros(x.shape, x.dtype) for x in exported.in_avals]
    for i, x in zip(exported.module_kept_var_idx, used, strict=True):
        leaves[i] = x
    return exported.call(*leaves)


mlir.register_lowering(_program, mlir.lower_fun(_call, multiple_results=True))
