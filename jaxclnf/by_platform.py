"""`lax.platform_dependent`, but what is not lowered is not traced either.

Tracing costs as much again for each way of doing a thing, and ways within ways
multiply: two thirds of the tracing of a fit from several starts was for platforms that
it did not run on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir


def by_platform(*args: Any, cpu: Callable, default: Callable) -> Any:
    """Does a thing in one way on CPU and in another elsewhere.

    Args:
        *args: Pytrees of arrays, all that is traced: what the functions refer to from
            outside may not be.
        cpu: What to do on CPU.
        default: What to do elsewhere, with results of the same shapes. It is traced
            only where it is lowered, or differentiated.

    Returns:
        The results of one of them.

    Raises:
        ValueError: `cpu` refers to something traced that is no argument; or, where it
            is lowered, `default` has other results.

    Example:
        >>> by_platform(jnp.ones(2), cpu=lambda x: 2 * x, default=lambda x: x + x)
        Array([2., 2.], dtype=float64)
    """
    leaves, tree = jax.tree.flatten(args)

    def elsewhere(*leaves: Any) -> list:
        return jax.tree.leaves(default(*tree.unflatten(leaves)))

    closed, shape = jax.make_jaxpr(
        lambda *leaves: cpu(*tree.unflatten(leaves)), return_shape=True
    )(*leaves)
    hidden = [x for x in closed.consts if isinstance(x, Tracer)]
    if hidden:
        raise ValueError(
            f"found {hidden[0]} referred to from outside; expected all that is traced "
            "among the arguments"
        )
    results = _by_platform.bind(*leaves, cpu=closed, default=elsewhere)
    return jax.tree.structure(shape).unflatten(results)


_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True


@_by_platform.def_impl
def _run(*leaves: Any, **ways: Any) -> list:
    # Without `jax.jit`, where it is disabled, this would call itself for ever.
    with jax.disable_jit(False):
        return jax.jit(lambda *leaves: _by_platform.bind(*leaves, **ways))(*leaves)


@_by_platform.def_abstract_eval
def _shapes(*_: Any, cpu: ClosedJaxpr, default: Callable) -> Sequence:
    del default
    return cpu.out_avals


def _on_cpu(*leaves: Any, cpu: ClosedJaxpr, default: Callable) -> list:
    del default
    return jaxpr_as_fun(cpu)(*leaves)


def _elsewhere(*leaves: Any, cpu: ClosedJaxpr, default: Callable) -> list:
    results = default(*leaves)
    found, expected = (
        [f"{x.dtype}{list(x.shape)}" for x in some] for some in (results, cpu.out_avals)
    )
    if found != expected:
        raise ValueError(
            f"found results {', '.join(found)} of `default`; expected those of `cpu`, "
            f"{', '.join(expected)}"
        )
    return results


mlir.register_lowering(
    _by_platform, mlir.lower_fun(_on_cpu, multiple_results=True), platform="cpu"
)
mlir.register_lowering(_by_platform, mlir.lower_fun(_elsewhere, multiple_results=True))


def _batch(
    leaves: Sequence, axes: Sequence, *, cpu: ClosedJaxpr, default: Callable
) -> tuple[list, list]:
    results = by_platform(
        *leaves,
        cpu=jax.vmap(jaxpr_as_fun(cpu), in_axes=tuple(axes)),
        default=jax.vmap(default, in_axes=tuple(axes)),
    )
    return results, [0] * len(results)


batching.primitive_batchers[_by_platform] = _batch


def _derivative(
    leaves: Sequence, tangents: Sequence, *, cpu: ClosedJaxpr, default: Callable
) -> tuple[Sequence, Sequence]:
    """As `lax.platform_dependent` has it: reverse mode needs both ways at hand."""
    moving = [not isinstance(tangent, ad.Zero) for tangent in tangents]

    def along(*moved: Any) -> list:
        some = iter(moved)
        both = zip(leaves, moving, strict=True)
        args = [next(some) if moves else x for x, moves in both]
        return lax.platform_dependent(*args, cpu=jaxpr_as_fun(cpu), default=default)

    def only_moving(of: Sequence) -> list:
        return [x for x, moves in zip(of, moving, strict=True) if moves]

    return jax.jvp(along, only_moving(leaves), only_moving(tangents))


ad.primitive_jvps[_by_platform] = _derivative
