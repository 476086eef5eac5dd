"""Numbers that steer one phase of the optimiser."""

import math
import operator
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float

from jaxclnf.pytree import pytree_dataclass, static

SolverName = Literal["newton", "em", "openface"]
"""The steps there are; see `jaxclnf.solver.steps`."""

_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "sigma": ("a number above 0", lambda x: 0 < x < math.inf),
    "reg_factor": ("a number, 0 or more", lambda x: 0 <= x < math.inf),
    "reg_scale": ("a number above 0, or None", lambda x: 0 < x < math.inf),
    "weight_factor": ("a finite number", math.isfinite),
    "shape_tol": ("a number, 0 or more", lambda x: 0 <= x < math.inf),
    "n_sigmas": ("0 or more", lambda x: x >= 0),
    "min_scale": ("a finite number", math.isfinite),
    "pass_tol": ("a number, 0 or more", lambda x: 0 <= x < math.inf),
}
"""Numbers without which a fit has no meaning, though it would end all the same."""


def check_numbers(options: Any) -> None:
    """Refuses numbers that mean nothing, where they are known.

    Args:
        options: Some options of a fit; arrays among them are not looked at.

    Raises:
        ValueError: A number is out of its range, or what should be one is a text.

    Example:
        >>> check_numbers(NURLMSOptions(n_sigmas=0.0))
    """
    for name, (expected, is_allowed) in _RANGES.items():
        value = getattr(options, name, None)
        if isinstance(value, str | bytes):
            raise ValueError(f"{name} is {value!r}; expected {expected}")
        if isinstance(value, int | float | np.number) and not is_allowed(float(value)):
            raise ValueError(f"{name} is {value}; expected {expected}")


def whole_number(name: str, value: Any) -> int:
    """A count or a size, of whatever whole type.

    Args:
        name: What to call it.
        value: The number.

    Returns:
        The same number.

    Raises:
        ValueError: It is no whole number.

    Example:
        >>> whole_number("starts", np.int64(3))
        3
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} is {value!r}; expected a whole number") from error


def whole_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """Sizes of windows, one for each scale, as a tuple.

    Args:
        name: What to call them.
        sizes: Any iterable of whole numbers.

    Returns:
        The same numbers.

    Raises:
        ValueError: They are not whole numbers.

    Example:
        >>> whole_sizes("window_sizes", np.asarray([11, 9]))
        (11, 9)
    """
    try:
        return tuple(operator.index(size) for size in sizes)
    except TypeError as error:
        raise ValueError(
            f"{name} is {sizes!r}; expected whole numbers, one for each scale"
        ) from error


@pytree_dataclass
class NURLMSOptions:
    """Options of one NU-RLMS phase (rigid or non-rigid)."""

    solver: SolverName = static(default="newton")
    """Which step is taken."""
    max_steps: int = static(default=300)
    """Step limit, at least 1."""
    sigma: Float[Array, ""] | float = 1.5
    """Bandwidth of the kernel density estimate, reference pixels."""
    reg_factor: Float[Array, ""] | float = 25.0
    """Weight of the shape prior, px^2."""
    weight_factor: Float[Array, ""] | float = 0.0
    """Weight of each landmark per unit of its expert's confidence; all weigh 1 where
    it is 0, as in the reference, or less."""
    shape_tol: Float[Array, ""] | float = 0.005
    """Stop when a step moves the whole shape (Euclidean norm of the 2n-vector) by less
    than this, image pixels; with `newton` a full step, undamped."""
    n_sigmas: Float[Array, ""] | float = 3.0
    """Bound of the mode weights, standard deviations."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_steps", whole_number("max_steps", self.max_steps))
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; expected 1 or more")
        check_numbers(self)
