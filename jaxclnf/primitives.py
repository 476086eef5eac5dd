"""What the package's own primitives have in common."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.interpreters import ad


def derivative_of(
    function: Callable, leaves: Sequence, tangents: Sequence
) -> tuple[Sequence, Sequence]:
    """The rule for derivatives of a primitive that does what a function does.

    Args:
        function: The function, of as many arrays.
        leaves: Where.
        tangents: In which direction; `ad.Zero` for those that stay.

    Returns:
        Results and their tangents.

    Example:
        >>> derivative_of(lambda x: [x**2], [jnp.asarray(3.0)], [jnp.asarray(1.0)])[1]
        [Array(6., dtype=float64, weak_type=True)]
    """
    moving = [not isinstance(tangent, ad.Zero) for tangent in tangents]

    def along(*moved: Any) -> Any:
        some = iter(moved)
        both = zip(leaves, moving, strict=True)
        return function(*(next(some) if moves else x for x, moves in both))

    def only_moving(of: Sequence) -> list:
        return [x for x, moves in zip(of, moving, strict=True) if moves]

    return jax.jvp(along, only_moving(leaves), only_moving(tangents))
