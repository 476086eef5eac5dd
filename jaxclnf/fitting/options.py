"""What a user can choose about a fit, and how it changes from scale to scale."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.experts.area import Sampling
from jaxclnf.fitting.part_settings import PART_REG_SCALE, PART_SETTINGS
from jaxclnf.fitting.prior import reg_for_size
from jaxclnf.pytree import pytree_dataclass, static
from jaxclnf.solver.options import (
    NURLMSOptions,
    SolverName,
    check_numbers,
    whole_number,
    whole_sizes,
)

DEFAULT_WINDOW_SIZES = (11, 9, 7, 7)
"""Response map side at each scale, coarse to fine. At a fourth scale OpenFace has 5;
on the held-out faces of the embedded model 7 is better: 3.4 % instead of 4.1 % of them
end more than 0.08 of the distance of the eyes away."""

OPENFACE_WINDOW_SIZES = (11, 9, 7, 5)
"""OpenFace's windows when it looks for a face, coarse to fine."""

OPENFACE_TRACKING_WINDOW_SIZES = (0, 9, 7, 0)
"""OpenFace's windows when it follows a face from frame to frame."""

WILD_WINDOW_SIZES = (15, 13, 11, 11)
"""Windows of OpenFace's `-wild` switch."""

_COARSEST, _FINEST = 0.25, 0.5
"""Patch scalings between which OpenFace changes its settings from scale to scale."""


_OPENFACE_PART_STEPS = 5


STEP_LIMITS: dict[SolverName, int] = {"newton": 100, "em": 2000, "openface": 5}
"""Default limits of the steps of a phase. Of 10868 phases on annotated faces, with the
three models of `experiments/steps.py`, the longest took `newton` 23 steps. EM ends
linearly: one phase in a hundred took more than 100 steps with the best of the models
and more than 256 with the worst, the longest 1352."""


_COUNTS = ("max_steps", "max_passes", "starts", "finished_starts", "short_search")


@pytree_dataclass
class FitOptions:
    """Options of a fit.

    Numbers that stay of one type, Python's floats for instance, can change without
    compiling again; others cannot. One that means nothing is a ValueError. An array may
    not be known yet: there a bandwidth of 0, or a negative bandwidth, prior or bound of
    the modes, makes the fit `Status.NONFINITE`.
    """

    solver: SolverName = static(default="newton")
    """`newton`: Newton's method on F, to a certified optimum; `em`: NU-RLMS steps until
    they are small; `openface`: steps exactly as OpenFace makes them, see
    `FitOptions.openface`."""
    window_sizes: tuple[int, ...] = static(default=DEFAULT_WINDOW_SIZES)
    """Side of the response maps at each scale, odd; 0 skips the scale, and so does
    leaving it out. Sizes beyond the model's scales are ignored."""
    max_steps: int | None = static(default=None)
    """Step limit of each phase; without one, that of the solver in `STEP_LIMITS`."""
    sigma: Float[Array, ""] | float = 1.5
    """Bandwidth of the kernel density estimate, reference pixels."""
    reg_factor: Float[Array, ""] | float = 25.0
    """Weight of the shape prior on a face of size `reg_scale`, px^2 of the image."""
    reg_scale: Float[Array, ""] | float | None = 1.0
    """Pixels per millimetre; 1 is a face 145 pixels wide. On a face twice as large
    the prior weighs four times as much, so that it holds the shape alike. None: it
    weighs the same on all faces, as in OpenFace, and holds large ones less."""
    weight_factor: Float[Array, ""] | float = 0.0
    """Weight of each landmark per unit of its expert's confidence; 0: all weigh 1."""
    shape_tol: Float[Array, ""] | float = 0.005
    """A phase has converged when a step moves all landmarks together (Euclidean norm)
    by less than this, image pixels; with `newton` a full step, undamped."""
    n_sigmas: Float[Array, ""] | float = 3.0
    """Bound of the mode weights, standard deviations."""
    min_scale: Float[Array, ""] | float = 0.1
    """Below this size, pixels per millimetre, a face counts as too small."""
    refine_by_scale: bool = static(default=True)
    """Relax the prior and widen the kernel from scale to scale, as OpenFace does."""
    sampling: Sampling = static(default="exact")
    """How grey values between pixels are found; `fixed_point` is OpenFace's way."""
    max_passes: int = static(default=1)
    """How often the last scale is run at most, its maps made again around where the
    landmarks came to: 1 goes once through; more end at a fixed point, where the
    landmarks are an optimum on maps that were made there."""
    pass_tol: Float[Array, ""] | float = 0.05
    """Such a point is reached when a pass through the last scale moves no landmark by
    this much, image pixels."""
    use_parts: bool = static(default=True)
    """Fit the model's parts (eyes, inner face) after the whole, and refit the whole to
    them; no matter for a model without parts."""
    starts: int = static(default=3)
    """From how many poses a fit from a box starts, of which the fit with the largest
    log-likelihood is kept: 1, frontal; 3, that and a yaw of 30 degrees to either side;
    up to 11, OpenFace's multi-view rotations."""
    finished_starts: int | None = static(default=2)
    """How many of the starts, the likeliest after the rigid phase of the first scale
    that is run, go on; None: all of them."""
    short_search: int = static(default=0)
    """Steps of a phase in a short search by OpenFace's steps that comes first; where it
    ends is one more start. A few steps a scale reach some optima that convergence at
    every scale passes by. 0: no such search; nor is there one from a single start."""

    def __post_init__(self) -> None:
        sizes = whole_sizes("window_sizes", self.window_sizes)
        object.__setattr__(self, "window_sizes", sizes)
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value))
        check_numbers(self)

    @classmethod
    def wild(cls) -> "FitOptions":
        """Larger windows and confidence weights, for difficult photographs.

        Returns:
            The windows, bandwidth and weights of OpenFace's `-wild` switch. Its prior
            of 35 serves ten steps towards the optimum; 20 was chosen, on annotated
            faces, for fits that arrive there.

        Example:
            >>> FitOptions.wild().window_sizes
            (15, 13, 11, 11)
        """
        return cls(
            window_sizes=WILD_WINDOW_SIZES,
            sigma=1.25,
            reg_factor=20.0,
            weight_factor=2.5,
        )

    @classmethod
    def openface(cls, *, parts: bool = True, starts: int = 1) -> "FitOptions":
        """The C++ program's numbers: its steps, its sampling, five steps a phase.

        The experts are those of the model: any main file of OpenFace, but use
        `openface_cen` for convolutional experts.

        Args:
            parts: Whether to fit the parts that the model names.
            starts: 1, or 11 for OpenFace's `-multi_view 1`.

        Returns:
            The settings of OpenFace's default for photographs.

        Example:
            >>> FitOptions.openface(starts=11).max_steps
            5
        """
        return cls(
            solver="openface",
            window_sizes=OPENFACE_WINDOW_SIZES,
            max_steps=5,
            reg_scale=None,
            shape_tol=0.01,
            min_scale=0.25,
            sampling="fixed_point",
            use_parts=parts,
            starts=starts,
            finished_starts=None,
        )

    @classmethod
    def openface_wild(cls, *, parts: bool = True, starts: int = 11) -> "FitOptions":
        """The C++ program's numbers under its switch `-wild`.

        Args:
            parts: Whether to fit the parts that the model names.
            starts: 11, as `-wild` turns multi-view on, or 1.

        Returns:
            Larger windows, confidence weights, ten steps a phase.

        Example:
            >>> FitOptions.openface_wild().starts
            11
        """
        return dataclasses.replace(
            cls.openface(parts=parts, starts=starts),
            window_sizes=WILD_WINDOW_SIZES,
            max_steps=10,
            sigma=1.25,
            reg_factor=35.0,
            weight_factor=2.5,
        )

    @classmethod
    def openface_cen(cls, *, parts: bool = True, starts: int = 11) -> "FitOptions":
        """The C++ program's numbers for convolutional experts (CE-CLM).

        Args:
            parts: Whether to fit the parts that the model names.
            starts: 11, or 1.

        Returns:
            OpenFace's default with half as much again of bandwidth and a tenth less of
            prior.

        Example:
            >>> FitOptions.openface_cen().sigma
            2.25
        """
        return dataclasses.replace(
            cls.openface(parts=parts, starts=starts), sigma=2.25, reg_factor=22.5
        )

    @classmethod
    def openface_video(cls, *, parts: bool = True) -> "FitOptions":
        """The C++ program's numbers for a frame whose face was found in the last one.

        Args:
            parts: Whether to fit the parts that the model names.

        Returns:
            `openface` with smaller windows and without the coarsest scale. The first
            frame, and those after a failure, are fitted with `openface`.

        Example:
            >>> FitOptions.openface_video().window_sizes
            (0, 9, 7, 0)
        """
        return dataclasses.replace(
            cls.openface(parts=parts), window_sizes=OPENFACE_TRACKING_WINDOW_SIZES
        )

    @property
    def step_limit(self) -> int:
        """Step limit of each phase.

        Raises:
            ValueError: The solver is none of these, and `max_steps` is None.

        Example:
            >>> FitOptions(solver="em").step_limit
            2000
        """
        if self.max_steps is not None:
            return self.max_steps
        if self.solver not in STEP_LIMITS:
            raise ValueError(
                f"solver is {self.solver!r}; expected one of {', '.join(STEP_LIMITS)}"
                ", or max_steps with another"
            )
        return STEP_LIMITS[self.solver]

    @property
    def num_starts(self) -> int:
        """How many starts a fit from a box has, the end of a short search included.

        Example:
            >>> FitOptions(starts=11, short_search=5).num_starts
            12
        """
        return self.starts + self.searches_twice(self.starts)

    def searches_twice(self, num_starts: int) -> bool:
        """Whether a short search comes first.

        Args:
            num_starts: How many starts there are.

        Returns:
            False where the options do not ask for it, and from a single start.

        Raises:
            ValueError: The number of its steps is negative.

        Example:
            >>> FitOptions(short_search=5).searches_twice(11)
            True
        """
        if self.short_search < 0:
            raise ValueError(
                f"short_search is {self.short_search}; expected a number of steps, or 0"
            )
        return self.short_search > 0 and num_starts > 1

    def of_short_search(self) -> "FitOptions":
        """The options of the short search: a few of OpenFace's steps a phase.

        Returns:
            These with its solver and step limit, and no further search.

        Example:
            >>> FitOptions(short_search=5).of_short_search().step_limit
            5
        """
        return dataclasses.replace(
            self,
            solver="openface",
            max_steps=self.short_search,
            max_passes=1,
            short_search=0,
        )

    def for_part(self, name: str) -> "FitOptions":
        """The options for a part of the face.

        Args:
            name: The part's name, for instance `"inner"`.

        Returns:
            These options with the part's own numbers where OpenFace has some for that
            name, the same at all scales. `openface` takes five steps, whatever the
            main model's limit.

        Mirrors:
            The settings of hierarchical models in CLNF::Read.

        Example:
            >>> FitOptions().for_part("left_eye_28").window_sizes
            (3, 5)
        """
        options = dataclasses.replace(
            self, refine_by_scale=False, starts=1, max_passes=1
        )
        if self.solver == "openface":
            options = dataclasses.replace(options, max_steps=_OPENFACE_PART_STEPS)
        settings = PART_SETTINGS.get(name)
        if settings is None:
            return options
        if self.reg_scale is not None:
            options = dataclasses.replace(options, reg_scale=PART_REG_SCALE)
        return dataclasses.replace(options, **settings._asdict())

    def at_scale(
        self,
        patch_scaling: Float[Array, ""],
        img_from_ref: Float[Array, "2 2"] | None = None,
    ) -> NURLMSOptions:
        """The solver's options at one scale.

        With `L = log2(min(patch_scaling, 0.5) / 0.25)`: the prior loses 15 L, the
        bandwidth gains L / 4 and the weights are multiplied by 1 + 2 L.

        Args:
            patch_scaling: The experts' scale, pixels per millimetre.
            img_from_ref: That of the response maps, by which the face's size is known;
                None: it is `reg_scale`.

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
        reg_factor = jnp.where((reg_factor >= 0) & (n_sigmas >= 0), reg_factor, jnp.nan)
        if self.refine_by_scale:
            level = jnp.log2(jnp.minimum(patch_scaling, _FINEST) / _COARSEST)
            reg_factor = jnp.maximum(reg_factor - 15 * level, 0.001)
            sigma = jnp.where(sigma > 0, sigma + 0.25 * level, jnp.nan)
            weight_factor = weight_factor * (1 + 2 * level)
        # An optimum for such numbers could even be certified.
        sigma = jnp.where(sigma > 0, sigma, jnp.nan)
        if img_from_ref is not None:
            reg_factor = reg_for_size(
                reg_factor, self.reg_scale, patch_scaling, img_from_ref
            )
        return NURLMSOptions(
            solver=self.solver,
            max_steps=self.step_limit,
            sigma=sigma,
            reg_factor=reg_factor,
            weight_factor=weight_factor,
            shape_tol=shape_tol,
            n_sigmas=n_sigmas,
        )
