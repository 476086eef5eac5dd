"""What can be wrong with an optimisation, and the report that says so."""

import dataclasses
from enum import Enum
from typing import Any


class Kind(Enum):
    """Classes of findings, in words; the order is the order of severity.

    Example:
        >>> Kind.CONSTANT_STEP.value, Kind.CONSTANT_STEP.is_problem
        ('constant step', True)
    """

    NOTHING_VISIBLE = "nothing visible"
    BAD_START = "unusable start"
    TOO_SMALL = "face too small"
    NONFINITE = "not finite"
    WRONG_SHAPE = "wrong shape"
    WRONG_MEAN_SHIFT = "wrong mean shift"
    WRONG_GRADIENT = "wrong gradient"
    WRONG_OBJECTIVE = "wrong objective"
    BOUND_IGNORED = "bound ignored"
    OBJECTIVE_FALLS = "objective falls"
    CONSTANT_STEP = "constant step"
    DIVERGENCE = "growing steps"
    OSCILLATION = "oscillation"
    BOUND_CYCLING = "bound cycling"
    STALLED = "no step accepted"
    AT_REST = "at rest, but not stopped"
    WANDERING = "no end in sight"
    FALSE_CONVERGENCE = "converged, but to no optimum"
    DRIFT = "drift out of the window"
    INDEFINITE = "indefinite curvature"
    SLOW = "slow linear convergence"
    CUT_OFF = "cut off by the step limit"
    CONVERGED = "converged"

    @property
    def is_problem(self) -> bool:
        """Whether something is wrong; a low step limit and convergence are not."""
        return self not in (Kind.CUT_OFF, Kind.CONVERGED)

    @property
    def is_nonconvergence(self) -> bool:
        """Whether it says that steps do not lead to an end."""
        return self in _NONCONVERGENCE

    @property
    def severity(self) -> int:
        """0 for the worst."""
        return list(Kind).index(self)


_NONCONVERGENCE = {
    Kind.NOTHING_VISIBLE,
    Kind.BAD_START,
    Kind.TOO_SMALL,
    Kind.NONFINITE,
    Kind.CONSTANT_STEP,
    Kind.DIVERGENCE,
    Kind.OSCILLATION,
    Kind.BOUND_CYCLING,
    Kind.STALLED,
    Kind.AT_REST,
    Kind.WANDERING,
    Kind.SLOW,
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was seen in a trace."""

    kind: Kind
    """The class it belongs to."""
    message: str
    """What was seen, with the numbers, in plain words."""
    evidence: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The numbers by name, for programs."""
    where: str = ""
    """Which phase, where there are several: for instance `scale 0, rigid`."""

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        return f"{self.kind.value}{place}: {self.message}"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All findings about a trace, the most severe first."""

    findings: tuple[Finding, ...]
    """What was seen; every phase that was run has one at least."""

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that say that something is wrong."""
        return tuple(x for x in self.findings if x.kind.is_problem)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Classes of the findings, in their order."""
        return tuple(x.kind for x in self.findings)

    @property
    def converges(self) -> bool:
        """Whether no finding says that steps do not lead to an end. Where they lead to
        is another question."""
        return not any(x.kind.is_nonconvergence for x in self.findings)

    def __str__(self) -> str:
        count = len(self.problems)
        words = "no problem" if not count else f"{count} problem{'s' * (count > 1)}"
        return "\n".join([words, *(f"- {finding}" for finding in self.findings)])
