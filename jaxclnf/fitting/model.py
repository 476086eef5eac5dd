"""A complete model: shape, patch experts for every scale, parts."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array, Float, Int

from jaxclnf.experts.sigma import with_sigma
from jaxclnf.experts.types import CCNFExperts, PatchExperts
from jaxclnf.fitting.joint import JointValidator
from jaxclnf.fitting.likelihood import LikelihoodValidator
from jaxclnf.fitting.part_settings import PART_SETTINGS
from jaxclnf.fitting.validate import Validator
from jaxclnf.pytree import pytree_dataclass, static
from jaxclnf.shape.pdm import PDM
from jaxclnf.solver.options import whole_sizes


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """Where a model comes from; travels with it into every file."""

    name: str
    """Short name, shown to people."""
    licence: str = ""
    """Full text of the licence and the notices that must travel with the model."""
    provenance: str = ""
    """How and from what the model was made."""


_NO_WORDS = ModelInfo(name="unnamed")


@dataclasses.dataclass(frozen=True)
class BoxCalibration:
    """Where a model's landmarks are in a square of the face detector.

    Everything is a fraction of the square's side.
    """

    shift: tuple[float, float]
    """From the square's corner to that of the box around the landmarks, x and y."""
    size: tuple[float, float]
    """Width and height of that box."""


@pytree_dataclass
class CLNFPart:
    """A model of some of the landmarks, fitted after the main one."""

    model: "CLNFModel"
    """The part's own shape and experts."""
    main_index: Int[Array, " q"]
    """Landmarks of the main model that the part shares."""
    part_index: Int[Array, " q"]
    """The same landmarks in the part's own numbering."""
    name: str = static()
    """Which part it is, for instance `"left_eye_28"`."""


@pytree_dataclass
class EarlyTermination:
    """When a fit from one start is good enough to try no other start.

    A fit at the coarsest scale in view `k`, of log-likelihood `l`, scores
    `weights[k] * l + biases[k]`. One entry for each view of that scale.
    """

    weights: Float[Array, " v"]
    """What a view's log-likelihood is multiplied with."""
    biases: Float[Array, " v"]
    """What is added then."""
    cutoffs: Float[Array, " v"]
    """A score above it ends the search."""


@pytree_dataclass
class CLNFModel:
    """Everything that `fit` needs to know about faces."""

    pdm: PDM
    """The shape model."""
    experts: tuple[PatchExperts, ...]
    """Patch experts, coarsest scale first."""
    parts: tuple[CLNFPart, ...] = ()
    """Models of parts of the face."""
    triangulations: tuple[Int[Array, "t 3"], ...] = ()
    """Triangles between landmarks for each view, for drawing."""
    early_termination: EarlyTermination | None = None
    """When to try no further start; None: never."""
    validator: Validator | LikelihoodValidator | JointValidator | None = None
    """Judges whether landmarks lie on a face; None: nothing does."""
    info: ModelInfo = static(default=_NO_WORDS)
    """Name, licence and provenance."""
    box_calibration: BoxCalibration | None = static(default=None)
    """How `detect_faces` finds this model's landmarks; None: as for OpenFace's."""

    def prepared(
        self, *window_sizes: Sequence[int], whole_sigma: bool = False
    ) -> "CLNFModel":
        """This model with Sigma matrices ready for some window sizes.

        Of a fit nothing depends on it but speed and rounding: a window size that was
        not prepared is solved for while fitting. Derivatives by the experts' `alpha`
        and `beta` do not go through a prepared Sigma, nor does it follow when these are
        replaced: prepare afterwards. Parts are prepared for their own settings.

        Args:
            *window_sizes: Window size of each scale, as in `FitOptions`, for one kind
                of fit or several; sizes beyond the model's scales are ignored.
            whole_sigma: For the `openface` dialect, where digits count: Sigma is
                multiplied as a whole, as OpenFace does it, slower and in two to three
                times the memory. Fewer landmarks then fall into another cell of its
                kernel's grid than in OpenFace.

        Returns:
            A model whose CCNF experts hold exactly the Sigma matrices asked for.

        Raises:
            ValueError: A size is neither odd nor 0.

        Example:
            >>> model.prepared((7,)).experts[0].sigma.keys()
            dict_keys([7])
        """
        window_sizes = tuple(whole_sizes("window_sizes", one) for one in window_sizes)
        for size in (size for one in window_sizes for size in one):
            if size < 0 or (size and size % 2 == 0):
                raise ValueError(f"found window size {size}; expected it odd, or 0")
        sizes = [
            {one[scale] for one in window_sizes if scale < len(one)} - {0}
            for scale in range(len(self.experts))
        ]
        experts = tuple(
            with_sigma(e, sorted(some), whole=whole_sigma)
            if isinstance(e, CCNFExperts)
            else e
            for e, some in zip(self.experts, sizes, strict=True)
        )
        parts = tuple(
            dataclasses.replace(
                part, model=part.model.prepared(*own, whole_sigma=whole_sigma)
            )
            for part in self.parts
            for own in [_part_windows(part.name, window_sizes)]
        )
        return dataclasses.replace(self, experts=experts, parts=parts)


def _part_windows(
    name: str, others: tuple[Sequence[int], ...]
) -> tuple[Sequence[int], ...]:
    settings = PART_SETTINGS.get(name)
    return others if settings is None else (settings.window_sizes,)


def without_words(model: CLNFModel) -> CLNFModel:
    """A model without what is about it: name, licence, provenance, boxes to begin from.

    Args:
        model: The model.

    Returns:
        One that fits the same, and shares its programs with all of its form.

    Example:
        >>> without_words(model).info.name
        'unnamed'
    """
    parts = tuple(
        dataclasses.replace(part, model=without_words(part.model))
        for part in model.parts
    )
    return dataclasses.replace(model, parts=parts, info=_NO_WORDS, box_calibration=None)
