"""What a user can choose about a model that is to be learnt."""

import dataclasses
import math
from pathlib import Path

from jaxclnf.learn.ccnf.tasks import FieldOptions
from jaxclnf.learn.require import require, require_absent


@dataclasses.dataclass(frozen=True)
class ShapeOptions:
    """The shape model."""

    num_modes: int = 25
    """Modes of the model."""
    blendshapes: Path | None = dataclasses.field(
        default=None, metadata={"exists": "file"}
    )
    """A linear model of 3D faces to start from, `.npz` with `neutral` `(n, 3)`,
    `identity` `(i, n, 3)`, `expression` `(e, n, 3)` and `expression_names`;
    centimetres, y up, z out of the face. If absent, depth is found from the landmarks
    alone."""
    num_samples: int = 4000
    """Faces drawn from the linear model."""
    num_start_modes: int = 60
    """Modes kept of those faces; depth is learnt from them."""
    num_rounds: int = 30
    """Rounds of expectation-maximisation over the labels."""
    start_faces: float = 1000.0
    """How many faces the linear model counts for."""
    variance_factor: float = 1.0
    """Factor on the variances of the modes. The labels' own variances, 1, are what the
    prior of a fit takes literally; more leaves it looser."""
    symmetric: bool = True
    """Whether every face's mirror image is a face too. Experts are then learnt for one
    half of the face from both, and mirrored."""

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        for key in ("num_modes", "num_samples", "num_start_modes", "num_rounds"):
            require(self, key, getattr(self, key) >= 1, "1 or more")
        require(self, "start_faces", self.start_faces > 0, "above 0")
        if self.blendshapes is None:
            unused = "num_samples", "num_start_modes", "start_faces"
            require_absent(self, unused, "without blendshapes")
        factor = self.variance_factor
        require(self, "variance_factor", factor > 0, "a positive number")


@dataclasses.dataclass(frozen=True)
class ExpertOptions:
    """The patch experts."""

    scales: tuple[float, ...] = (0.2, 0.3, 0.45, 0.7)
    """Patch scalings, pixels per millimetre, coarse to fine."""
    views_deg: tuple[float, ...] = (0.0,)
    """Yaw in the middle of each view, degrees. Of symmetric faces, only those that are
    0 or more; the others are mirrored."""
    view_reach_deg: float = 25.0
    """A view learns from faces whose yaw is no further from its middle, degrees."""
    samples_per_epoch: int = 3000
    """A view of fewer faces sees them again, differently, until it has seen so many."""
    variation: tuple[float, ...] = (2.0, 1.5, 1.0)
    """How much more the frame's size and rotation vary at each scale than
    `field.augmentation` says; the last number holds for all further scales. Coarse
    experts see faces whose pose is not known yet."""
    neighbour_windows: tuple[int, ...] = (5, 7, 9, 11, 13, 15)
    """Window sizes whose neighbours are coupled."""
    field: FieldOptions = FieldOptions()
    """How the fields of one view and scale are learnt."""

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        scales, views = self.scales, self.views_deg
        rising = len(scales) > 0 and scales[0] > 0 and _differ(scales)
        rising = rising and list(scales) == sorted(scales)
        require(self, "scales", rising, "positive numbers, each above the last")
        fine = len(views) > 0 and all(abs(view) <= 90 for view in views)
        fine = fine and _differ(views)
        require(self, "views_deg", fine, "different angles from -90 to 90")
        reach = self.view_reach_deg
        require(self, "view_reach_deg", reach > 0, "a positive angle")
        variation = self.variation
        positive = len(variation) > 0 and min(variation) >= 0
        require(self, "variation", positive, "one or more numbers from 0 on")
        odd = all(window > 0 and window % 2 for window in self.neighbour_windows)
        require(self, "neighbour_windows", odd, "odd numbers")
        # A pytree is made without checks, so its numbers are checked here.
        field = self.field
        for key in ("window_size", "support"):
            value = getattr(field, key)
            require(self, f"field.{key}", value >= 3 and value % 2, "3 or more, odd")
        for key in ("num_neurons", "batch_size", "num_epochs", "patience"):
            require(self, f"field.{key}", getattr(field, key) >= 1, "1 or more")
        for key in ("target_sigma", "learning_rate"):
            require(self, f"field.{key}", getattr(field, key) > 0, "a positive number")
        for key in ("decay", "coupling_decay"):
            require(self, f"field.{key}", getattr(field, key) >= 0, "0 or more")
        for key, value in dataclasses.asdict(field.augmentation).items():
            most = 0.5 if key == "blur" else math.inf
            expected = "0 to 0.5" if key == "blur" else "0 or more"
            require(self, f"field.augmentation.{key}", 0 <= value <= most, expected)

    def field_at(self, scale_index: int) -> FieldOptions:
        """Options of the fields of one scale.

        Args:
            scale_index: Which of the scales.

        Returns:
            `field` with its augmentation varied.
        """
        factor = self.variation[min(scale_index, len(self.variation) - 1)]
        augmentation = self.field.augmentation
        return dataclasses.replace(
            self.field,
            augmentation=dataclasses.replace(
                augmentation,
                scale=factor * augmentation.scale,
                rotation=factor * augmentation.rotation,
            ),
        )


@dataclasses.dataclass(frozen=True)
class ValidatorOptions:
    """When a fit is to be trusted. Distances are means over the landmarks, in percent
    of the size of the face: the square root of the area of its labels' box."""

    learn: bool = True
    """Whether to learn a validator: its network from fits of the faces that are learnt
    from, all else from those of the held-out ones."""
    in_place_percent: float = 5.0
    """A fit that is no further from the labels is in place."""
    lost_percent: float = 10.0
    """One that is further is lost. Those between are not learnt from."""
    max_blur_percent: float = 8.0
    """Largest standard deviation by which pictures are blurred, percent of the size of
    the face. A fifth of them is, at random, a fifth each gets noise, is cut off or
    partly covered, and a third of all is lit from one side: in bad pictures fits are to
    be trusted too."""
    max_noise: float = 60.0
    """Largest standard deviation of noise, grey values."""
    max_shadow_percent: float = 95.0
    """How much darker at most one side of a face is than the other."""
    max_hidden_percent: float = 30.0
    """How much of the area of a face's box at most is beyond the border of the picture,
    or covered by an even rectangle."""
    num_hidden: int = 64
    """Units of the network that looks at the warped face; 0: there is none, and fits
    are judged by their responses alone."""
    picture_size: int = 32
    """Size of the warped face, pixels: the square root of the area of its box."""
    num_epochs: int = 120
    """How often the network sees each fit."""

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        near, far = self.in_place_percent, self.lost_percent
        require(self, "in_place_percent", near > 0, "a positive number")
        require(
            self, "lost_percent", far >= near, f"in_place_percent, {near:g}, or more"
        )
        for key in ("max_blur_percent", "max_noise", "num_hidden"):
            require(self, key, getattr(self, key) >= 0, "0 or more")
        for key in ("max_shadow_percent", "max_hidden_percent"):
            require(self, key, 0 <= getattr(self, key) <= 100, "0 to 100")
        require(self, "picture_size", 8 <= self.picture_size <= 128, "8 to 128")
        require(self, "num_epochs", self.num_epochs >= 1, "1 or more")


def _differ(values: tuple[float, ...]) -> bool:
    return len(set(values)) == len(values)
