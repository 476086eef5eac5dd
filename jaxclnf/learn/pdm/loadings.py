"""Linear shape models while they are learnt: making them unique, and their depth."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int

from jaxclnf.learn.pdm.shapes import NUM_FIXED, nearest_rotation, with_fixed_signs
from jaxclnf.learn.pdm.symmetry import mirror_shapes
from jaxclnf.shape.pdm import PDM

_LEAST_VARIANCE = 1e-6
"""Smallest variance of a mode relative to the largest; they are divided by."""
_ANY = 1e3
"""Standard deviation of moves of the whole head, millimetres: any."""
_MISMATCH = 1.0
"""What the start does not explain of a shape in x and y, millimetres."""


class Loadings(NamedTuple):
    """A linear model `mean + loads z` with standard normal weights `z`."""

    mean: Float64[np.ndarray, "n 3"]
    """Mean shape, millimetres."""
    loads: Float64[np.ndarray, "n 3 m"]
    """Each mode times its standard deviation."""


class Move(NamedTuple):
    """A similarity: `X -> size * rotation (X - middle)`."""

    size: float
    """Factor."""
    rotation: Float64[np.ndarray, "3 3"]
    """Rotation matrix."""
    middle: Float64[np.ndarray, " 3"]
    """What becomes the origin."""


class DepthRule(NamedTuple):
    """What depth some model expects of a shape that is known in x and y."""

    mean: Float64[np.ndarray, "n 3"]
    """The model's mean shape."""
    slope: Float64[np.ndarray, "n nx2"]
    """Change of each landmark's depth per move of each landmark in x and y."""

    def expected(
        self, columns: Float64[np.ndarray, "n 3 k"]
    ) -> Float64[np.ndarray, "n k"]:
        """The depth expected of a mean shape, the first column, and of modes."""
        moves = columns[:, :2].copy()
        moves[..., 0] -= self.mean[:, :2]
        depth = self.slope @ moves.reshape(-1, moves.shape[2])
        depth[:, 0] += self.mean[:, 2]
        return depth


def loadings_of(pdm: PDM, num_modes: int) -> Loadings:
    """The first modes of a PDM, each times its standard deviation.

    Args:
        pdm: The model.
        num_modes: How many modes to take, at most as many as there are.

    Returns:
        The same model.

    Example:
        >>> loadings_of(pdm, 2).loads.shape
        (12, 3, 2)
    """
    modes = np.asarray(pdm.princ_comp[..., :num_modes], np.float64)
    values = np.asarray(pdm.eigen_values[:num_modes], np.float64)
    return Loadings(np.asarray(pdm.mean_shape, np.float64), modes * np.sqrt(values))


def pdm_of(model: Loadings, dtype: Any) -> PDM:
    """The PDM of a model whose modes are orthogonal.

    Args:
        model: The model, as `unique` gives it.
        dtype: Precision of the arrays.

    Returns:
        The same model.

    Example:
        >>> same = pdm_of(loadings_of(pdm, 4), np.float64)
        >>> bool(jnp.allclose(same.eigen_values, pdm.eigen_values))
        True
    """
    values = np.sum(model.loads**2, axis=(0, 1))
    values = np.maximum(values, _LEAST_VARIANCE * values.max(initial=0.0))
    return PDM(
        mean_shape=jnp.asarray(model.mean, dtype),
        princ_comp=jnp.asarray(model.loads / np.sqrt(values), dtype),
        eigen_values=jnp.asarray(values, dtype),
    )


def unique(
    model: Loadings, reference: Float64[np.ndarray, "n 3"]
) -> tuple[Loadings, Float64[np.ndarray, "m m"], Move]:
    """One of the many models that explain the same landmarks.

    Its mean has position, orientation and size of the reference. Its modes have no part
    in what a pose can do, are orthogonal, sorted, and fixed in sign.

    Args:
        model: Any model.
        reference: A centred shape.

    Returns:
        The model; the orthogonal matrix that the modes were multiplied with, so that
        old weights become `z @ turn`; and how the mean was moved.

    Example:
        >>> model = loadings_of(pdm, 3)
        >>> again, turn, move = unique(model, model.mean)
        >>> bool(np.allclose(turn @ turn.T, np.eye(3)))
        True
    """
    middle = model.mean.mean(axis=0)
    mean = model.mean - middle
    rotation = nearest_rotation(reference.T @ mean)
    size = float(np.sqrt(np.sum(reference**2) / np.sum(mean**2)))
    mean = size * mean @ rotation.T
    basis = _rigid_moves(mean)
    flat = size * np.einsum("ab,nbk->nak", rotation, model.loads)
    flat = flat.reshape(len(basis), -1)
    flat = flat - basis @ (basis.T @ flat)
    modes, deviations, turn = np.linalg.svd(flat, full_matrices=False)
    fixed = with_fixed_signs(modes)
    turn = turn.T * np.sum(fixed * modes, axis=0)
    loads = (fixed * deviations).reshape(model.loads.shape)
    return Loadings(mean, loads), turn, Move(size, rotation, middle)


def symmetric(model: Loadings, mirror: Int[np.ndarray, " n"]) -> Loadings:
    """The exactly symmetric model nearest to one that is almost.

    Args:
        model: The model.
        mirror: Each landmark's mirror image.

    Returns:
        A model of the same size, with modes that are symmetric or antisymmetric.

    Example:
        >>> shape = np.asarray([[-3.0, 0, 1], [3.1, 0, 1]])
        >>> model = Loadings(shape, np.ones((2, 3, 1)))
        >>> np.round(symmetric(model, np.asarray([1, 0])).mean[:, 0], 3).tolist()
        [-3.05, 3.05]
    """
    mean = (model.mean + mirror_shapes(model.mean, mirror)) / 2
    modes = np.moveaxis(model.loads, 2, 0)
    both = np.concatenate([modes, mirror_shapes(modes, mirror)]) / np.sqrt(2)
    _, deviations, kept = np.linalg.svd(both.reshape(len(both), -1), False)
    count = len(modes)
    loads = with_fixed_signs(kept[:count].T) * deviations[:count]
    return Loadings(mean, loads.reshape(model.loads.shape))


def depth_rule(start: Loadings) -> DepthRule:
    """Linear regression of depth on x and y, as a model's shapes have them.

    Args:
        start: The model.

    Returns:
        The rule. A move of the whole head brings its own depth along.

    Example:
        >>> start = loadings_of(pdm, 4)
        >>> expected = depth_rule(start).expected(start.mean[..., None])
        >>> bool(np.allclose(expected[:, 0], start.mean[:, 2]))
        True
    """
    # Without the rigid moves the rule would give modes a depth for what poses happen to
    # leave to them in x and y; that would change the poses, and so on: it runs away.
    rigid = _ANY * _rigid_moves(start.mean).reshape(*start.mean.shape, NUM_FIXED)
    loads = np.concatenate([start.loads, rigid], axis=2)
    depth = loads[:, 2]
    across = loads[:, :2].reshape(-1, depth.shape[1])
    spread = across @ across.T + _MISMATCH**2 * np.eye(len(across))
    return DepthRule(start.mean, np.linalg.solve(spread, across @ depth.T).T)


def _rigid_moves(shape: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "k 7"]:
    # What shifting, turning and resizing do to a shape, orthonormal.
    shifts = np.broadcast_to(np.eye(3), (*shape.shape, 3))
    turns = np.stack([np.cross(axis, shape) for axis in np.eye(3)], axis=2)
    moves = np.concatenate([shifts, turns, shape[..., None]], axis=2)
    return np.linalg.qr(moves.reshape(-1, NUM_FIXED))[0]
