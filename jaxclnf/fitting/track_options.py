"""What a user can choose about following a face."""

import dataclasses

from jaxclnf.fitting.options import OPENFACE_TRACKING_WINDOW_SIZES, FitOptions
from jaxclnf.pytree import pytree_dataclass, static

_FOLLOW_WINDOW_SIZES = (0, 9, 7, 7)
"""From frame to frame a face moves little, so the coarsest scale is left out; the
finest is not, so that a frame ends where a photograph would."""

_WILD_FOLLOW_WINDOW_SIZES = (0, 13, 11, 11)


@pytree_dataclass
class TrackOptions:
    """Options of a track. Numbers of fits can change without compiling again."""

    first: FitOptions = FitOptions()
    """How a face is fitted from a detector's box, and, from one start, after a
    failure."""
    follow: FitOptions = FitOptions(window_sizes=_FOLLOW_WINDOW_SIZES, starts=1)
    """How a face is fitted from where it was in the last frame."""
    reinit_every: int = static(default=2)
    """After a failure the detector looks at every frame of this many, the first
    included; where no face is followed, at every frame of six times as many."""
    recheck_every: int = static(default=30)
    """At every frame of this many after a fit from the detector's box it looks again,
    though the face is followed well: of a new fit from its box and the followed one the
    likelier is kept. After a face was covered it may be followed wrongly, and trusted.
    0: never, as in OpenFace; nor where the two do not end at windows of one size, as
    their likelihoods do not compare."""
    max_failures: int = static(default=100)
    """So many failures in a row and one more are borne, the next one ends the track:
    OpenFace counts from 0, and so does `TrackerState.failures_in_a_row`."""
    use_template: bool = static(default=False)
    """Begin from where the last frame's grey values are found again, for faces that
    move by more than a window."""
    trust_first: bool = static(default=False)
    """Whether the frame of a first detection counts as good whatever the validator
    says. The face is followed in any case."""

    @property
    def rechecks(self) -> bool:
        """Whether faces that are followed well are ever compared with a new fit."""
        ends = {fit.window_sizes[-1:] for fit in (self.first, self.follow)}
        return self.recheck_every > 0 and len(ends) == 1

    @property
    def window_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The window sizes of both kinds of fit, for `CLNFModel.prepared`."""
        return self.first.window_sizes, self.follow.window_sizes

    @classmethod
    def wild(cls) -> "TrackOptions":
        """Larger windows and confidence weights, for difficult videos.

        Returns:
            The options, run to convergence.

        Example:
            >>> TrackOptions.wild().window_sizes
            ((15, 13, 11, 11), (0, 13, 11, 11))
        """
        wild = FitOptions.wild()
        return cls(
            first=wild,
            follow=dataclasses.replace(
                wild, starts=1, window_sizes=_WILD_FOLLOW_WINDOW_SIZES
            ),
        )

    @classmethod
    def openface(cls, *, parts: bool = True) -> "TrackOptions":
        """The C++ program's numbers.

        Args:
            parts: Whether to fit the parts that the model names.

        Returns:
            The settings of OpenFace's default for videos.

        Example:
            >>> TrackOptions.openface().window_sizes
            ((11, 9, 7, 5), (0, 9, 7, 0))
        """
        return cls(
            first=FitOptions.openface(parts=parts, starts=11),
            follow=FitOptions.openface_video(parts=parts),
            recheck_every=0,
            trust_first=True,
        )

    @classmethod
    def openface_wild(cls, *, parts: bool = True) -> "TrackOptions":
        """The C++ program's numbers under its switch `-wild`.

        Args:
            parts: Whether to fit the parts that the model names.

        Returns:
            Larger windows for first fits; the small ones stay as they are.

        Example:
            >>> TrackOptions.openface_wild().window_sizes
            ((15, 13, 11, 11), (0, 9, 7, 0))
        """
        wild = FitOptions.openface_wild(parts=parts)
        return cls(
            first=wild,
            follow=dataclasses.replace(
                wild, starts=1, window_sizes=OPENFACE_TRACKING_WINDOW_SIZES
            ),
            recheck_every=0,
            trust_first=True,
        )
