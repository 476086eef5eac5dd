"""How a fit, or one phase of it, ended."""

from enum import IntEnum

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Status(IntEnum):
    """Reason why an optimisation stopped; the order is the order of severity.

    Example:
        >>> Status(1).name, Status.CONVERGED.message
        ('CONVERGED', 'the landmarks stopped moving')
    """

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NONFINITE = 3
    FACE_TOO_SMALL = 4
    NOTHING_VISIBLE = 5
    BAD_START = 6

    @property
    def message(self) -> str:
        """The status in words, for people."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.RUNNING: "not finished",
    Status.CONVERGED: "the landmarks stopped moving",
    Status.MAX_STEPS: "step limit reached before the landmarks stopped moving",
    Status.NONFINITE: "a value became infinite or not a number, or fewer than three "
    "landmarks tell the pose",
    Status.FACE_TOO_SMALL: "the face is too small in the image for the patch experts",
    Status.NOTHING_VISIBLE: "no landmark has a patch expert with a response here",
    Status.BAD_START: "the start is unusable: a box or parameters that are not finite, "
    "of no size, or wholly outside the image",
}

_FIRST_FAILURE = Status.NONFINITE


def is_failure(status: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a status says that the result cannot be used.

    Args:
        status: Codes of `Status`.

    Returns:
        True from `Status.NONFINITE` on. `MAX_STEPS` is no failure: the landmarks are
        usable, only uncertified.

    Example:
        >>> bool(is_failure(jnp.asarray(Status.MAX_STEPS)))
        False
    """
    return status >= _FIRST_FAILURE


def merge_status(old: Int[Array, "..."], new: Int[Array, "..."]) -> Int[Array, "..."]:
    """Combines the status of what was done so far with that of what came next.

    | old \\ new    | CONVERGED | MAX_STEPS | a failure |
    |--------------|-----------|-----------|-----------|
    | RUNNING      | new       | new       | new       |
    | CONVERGED    | CONVERGED | MAX_STEPS | new       |
    | MAX_STEPS    | MAX_STEPS | MAX_STEPS | new       |
    | a failure    | old       | old       | old       |

    Args:
        old: Codes of `Status` so far; start with `RUNNING`.
        new: Codes of the next phase.

    Returns:
        The combined codes: the first failure sticks, one unconverged phase makes the
        whole unconverged.

    Example:
        >>> merged = merge_status(
        ...     jnp.asarray(Status.MAX_STEPS), jnp.asarray(Status.CONVERGED)
        ... )
        >>> Status(int(merged)).name
        'MAX_STEPS'
    """
    return jnp.where(is_failure(old), old, jnp.maximum(old, new))
