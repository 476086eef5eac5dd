"""What a user can choose about a fit, and how it changes from scale to scale."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.experts.area import Sampling
from jaxclnf.pytree import pytree_dataclass, static
from jaxclnf.solver.options import NURLMSOptions, SolverName

DEFAULT_WINDOW_SIZES = (11, 9, 7, 7)
"""Response map side at each scale, coarse to fine. At a fourth scale OpenFace has 5;
on the held-out faces of the embedded model 7 is better: 3.4 % instead of 4.1 % of them
end more than 0.08 of the distance of the eyes away."""

_COARSEST, _FINEST = 0.25, 0.5
"""Patch scalings between which OpenFace changes its settings from scale to scale."""


@pytree_dataclass
class FitOptions:
    """Options of a fit. Numbers can change without compiling again, others not."""

    solver: SolverName = static(default="em")
    """`em`: NU-RLMS steps to convergence."""
    window_sizes: tuple[int, ...] = static(default=DEFAULT_WINDOW_SIZES)
    """Side of the response maps at each scale, odd; 0 skips the scale, and so does
    leaving it out. Sizes beyond the model's scales are ignored."""
    max_steps: int = static(default=2000)
    """Step limit of each phase. EM ends linearly: of 7000 phases on annotated faces one
    in 2000 took more than 300 steps, the longest 945."""
    sigma: Float[Array, ""] | float = 1.5
    """Bandwidth of the kernel density estimate, reference pixels."""
    reg_factor: Float[Array, ""] | float = 25.0
    """Weight of the shape prior, px^2."""
    weight_factor: Float[Array, ""] | float = 0.0
    """Weight of each landmark per unit of its expert's confidence; 0: all weigh 1."""
    shape_tol: Float[Array, ""] | float = 0.005
    """A phase has converged when a step moves all landmarks together (Euclidean norm)
    by less than this, image pixels."""
    n_sigmas: Float[Array, ""] | float = 3.0
    """Bound of the mode weights, standard deviations."""
    min_scale: Float[Array, ""] | float = 0.1
    """Below this size, pixels per millimetre, a face counts as too small."""
    refine_by_scale: bool = static(default=True)
    """Relax the prior and widen the kernel from scale to scale, as OpenFace does."""
    sampling: Sampling = static(default="exact")
    """How grey values between pixels are found; `fixed_point` is OpenFace's way."""

    @classmethod
    def wild(cls) -> "FitOptions":
        """Larger windows and confidence weights, for difficult photographs.

        Returns:
            The numbers of OpenFace's `-wild` switch, run to convergence.

        Example:
            >>> FitOptions.wild().window_sizes
            (15, 13, 11, 11)
        """
        return cls(
            window_sizes=(15, 13, 11, 11),
            sigma=1.25,
            reg_factor=35.0,
            weight_factor=2.5,
        )

    def at_scale(self, patch_scaling: Float[Array, ""]) -> NURLMSOptions:
        """The solver's options at one scale.

        With `L = log2(min(patch_scaling, 0.5) / 0.25)`: the prior loses 15 L, the
        bandwidth gains L / 4 and the weights are multiplied by 1 + 2 L.

        Args:
            patch_scaling: The experts' scale, pixels per millimetre.

        Returns:
            Options in the dtype of `patch_scaling`.

        Mirrors:
            The refinement of parameters in CLNF::Fit.

        Example:
            >>> options = FitOptions().at_scale(jnp.asarray(0.5))
            >>> float(options.sigma), float(options.reg_factor)
            (1.75, 10.0)
        """
        dtype = patch_scaling.dtype
        sigma, reg_factor, weight_factor, shape_tol, n_sigmas = (
            jnp.asarray(x, dtype)
            for x in (
                self.sigma,
                self.reg_factor,
                self.weight_factor,
                self.shape_tol,
                self.n_sigmas,
            )
        )
        if self.refine_by_scale:
            level = jnp.log2(jnp.minimum(patch_scaling, _FINEST) / _COARSEST)
            reg_factor = jnp.maximum(reg_factor - 15 * level, 0.001)
            sigma = sigma + 0.25 * level
            weight_factor = weight_factor * (1 + 2 * level)
        return NURLMSOptions(
            solver=self.solver,
            max_steps=self.max_steps,
            sigma=sigma,
            reg_factor=reg_factor,
            weight_factor=weight_factor,
            shape_tol=shape_tol,
            n_sigmas=n_sigmas,
        )
