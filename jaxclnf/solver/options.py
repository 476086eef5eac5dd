"""Numbers that steer one phase of the optimiser."""

from typing import Literal

from jaxtyping import Array, Float

from jaxclnf.pytree import pytree_dataclass, static

SolverName = Literal["newton", "em", "openface"]
"""The steps there are; see `jaxclnf.solver.steps`."""


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
