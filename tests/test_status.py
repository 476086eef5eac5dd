"""Statuses: how they combine, which are failures, what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.status import Status, is_failure, merge_status

FAILURES = (
    Status.NONFINITE,
    Status.FACE_TOO_SMALL,
    Status.NOTHING_VISIBLE,
    Status.BAD_START,
)
USABLE = (Status.RUNNING, Status.CONVERGED, Status.MAX_STEPS)


def _merged(old: Status, new: Status) -> Status:
    return Status(int(merge_status(jnp.asarray(old), jnp.asarray(new))))


@pytest.mark.parametrize("old", Status)
@pytest.mark.parametrize("new", Status)
def test_truth_table(old, new):
    if old in FAILURES:
        expected = old  # the first failure sticks
    elif new in FAILURES:
        expected = new
    elif Status.MAX_STEPS in (old, new):
        expected = Status.MAX_STEPS
    elif Status.CONVERGED in (old, new):
        expected = Status.CONVERGED
    else:
        expected = Status.RUNNING
    assert _merged(old, new) == expected


def test_the_numbers_stay():
    """They are stored in tables."""
    assert [s.name for s in sorted(Status)] == [
        "RUNNING",
        "CONVERGED",
        "MAX_STEPS",
        "NONFINITE",
        "FACE_TOO_SMALL",
        "NOTHING_VISIBLE",
        "BAD_START",
    ]
    assert [int(s) for s in sorted(Status)] == list(range(7))


def test_failures():
    codes = jnp.asarray([int(s) for s in Status])
    expected = [s in FAILURES for s in Status]
    np.testing.assert_array_equal(is_failure(codes), expected)
    assert set(FAILURES) | set(USABLE) == set(Status)


def test_merging_keeps_dtype_and_works_on_arrays():
    old = jnp.asarray([0, 2, 3], jnp.int32)
    new = jnp.asarray([1, 1, 6], jnp.int32)
    merged = jax.jit(merge_status)(old, new)
    assert merged.dtype == jnp.int32
    np.testing.assert_array_equal(merged, [1, 2, 3])


def test_every_status_has_its_own_words():
    messages = [s.message for s in Status]
    assert all(messages) and len(set(messages)) == len(messages)
