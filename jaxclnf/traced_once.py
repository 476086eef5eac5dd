"""`jax.jit` for programs that are to be traced once and not in each process.

JAX keeps compiled programs, but finds one by its text, which each process has to make
anew: of the 5 s that a photograph takes, 2.6 s to trace and lower the fit and .7 s to
load it. Here the text is kept as well, on the process's shelf if it has one, under a
key that is known without it.
"""

import functools
import inspect
import pickle
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxclnf.primitives import derivative_of
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


def traced_once(*static_argnames: str) -> Callable[[Callable], Any]:
    """`jax.jit`, whose traces are kept on the process's shelf.

    Without a shelf, on accelerators, and in debugging modes of JAX it is `jax.jit` and
    nothing else. Under `jax.vmap` and in derivatives the function is traced as ever.

    Args:
        *static_argnames: Names of the arguments that are no arrays.

    Returns:
        What makes a jitted function of one. It has to be a module's, with a name for
        each argument; what it does may depend on these, on the package's source and on
        JAX's settings only.

    Example:
        >>> @traced_once("twice")
        ... def total(x, twice=False):
        ...     return jnp.sum(2 * x if twice else x)
        >>> float(total(jnp.ones(3), twice=True))
        6.0
    """

    def decorate(function: Callable) -> Any:
        signature = inspect.signature(function)

        @functools.partial(jax.jit, static_argnames=static_argnames)
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            shelf, given = shelf_in_use(), signature.bind(*args, **kwargs).arguments
            static = {k: given.pop(k) for k in static_argnames if k in given}
            if shelf is None or not _is_kept(function, given, static):
                return function(*args, **kwargs)
            return _run_kept(shelf, function, given, static)

        return run

    return decorate


def _is_kept(function: Callable, given: dict[str, Any], static: dict[str, Any]) -> bool:
    settings = jax.config.values
    return (
        jax.default_backend() == "cpu"
        and settings["jax_enable_compilation_cache"]
        and not any(settings[name] for name in _DEBUGGING)
        and all(map(_has_text, (function, *static.values())))
        and _is_built_of(
            jax.tree.structure(given), {_package(function), _package(dict)}
        )
    )


def _package(of: Any) -> str:
    return of.__module__.partition(".")[0]


def _is_built_of(tree: Any, packages: set[str]) -> bool:
    """Whether all classes are known ones: not of others, whose source may change."""
    node = tree.node_data()
    if node is not None and _package(node[0]) not in packages:
        return False
    return all(_is_built_of(child, packages) for child in tree.children())


def _has_text(static: Any) -> bool:
    """Whether it is told from others by a text that is the same in all processes."""
    if isinstance(static, FunctionType):
        return "<" not in static.__qualname__  # no lambda, and in no other function
    return isinstance(static, bool | int | float | str | None)


def _text(static: Any) -> str:
    if isinstance(static, FunctionType):
        return f"{static.__module__}.{static.__qualname__}"
    return repr(static)


def _run_kept(
    shelf: Shelf, function: Callable, given: dict[str, Any], static: dict[str, Any]
) -> Any:
    """What a function makes of arrays that are being traced."""
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
    structures = []

    def of_leaves(*leaves: Any) -> list:
        results = function(**jax.tree.unflatten(tree, leaves), **static)
        arrays, structure = jax.tree.flatten(results)
        structures.append(structure)
        return arrays

    kept = shelf.get(name, key)
    if kept is None:
        exported = export.export(jax.jit(of_leaves))(*shapes)
        # A structure of classes of our own cannot be pickled, what has it can.
        (structure,) = structures
        numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
        kept = pickle.dumps((bytes(exported.serialize()), numbered))
        shelf.put(name, key, kept)
    program, numbered = pickle.loads(kept)
    exported = export.deserialize(bytearray(program))
    arrays = _kept.bind(*leaves, exported=exported, function=of_leaves)
    return jax.tree.unflatten(jax.tree.structure(numbered), arrays)


# `Exported.call` alone can be neither mapped nor differentiated, and would bind all
# results to the device.
_kept = Primitive("traced_once")
_kept.multiple_results = True


@_kept.def_impl
def _run(*leaves: Any, **of: Any) -> list:
    return jax.jit(lambda *leaves: _kept.bind(*leaves, **of))(*leaves)


@_kept.def_abstract_eval
def _shapes(*_: Any, exported: "Exported", function: Callable) -> Sequence:
    del function
    return exported.out_avals


def _from_text(*leaves: Any, exported: "Exported", function: Callable) -> Any:
    del function
    return exported.call(*leaves)


def _anew(*leaves: Any, exported: "Exported", function: Callable) -> Any:
    del exported
    return function(*leaves)


mlir.register_lowering(
    _kept, mlir.lower_fun(_from_text, multiple_results=True), platform="cpu"
)
mlir.register_lowering(_kept, mlir.lower_fun(_anew, multiple_results=True))


def _batch(
    leaves: Sequence, axes: Sequence, *, exported: "Exported", function: Callable
) -> tuple[Sequence, list]:
    del exported
    results = jax.vmap(function, in_axes=tuple(axes))(*leaves)
    return results, [0] * len(results)


batching.primitive_batchers[_kept] = _batch


def _derivative(
    leaves: Sequence, tangents: Sequence, *, exported: "Exported", function: Callable
) -> tuple[Sequence, Sequence]:
    del exported
    return derivative_of(function, leaves, tangents)


ad.primitive_jvps[_kept] = _derivative
