"""The neighbour matrices of a window, over which a field's betas are learnt."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

NUM_NEIGHBOURS = 3
"""Neighbour matrices of a window: edges, corners, distant pixels."""

_EDGES = ((0, 1), (1, 0), (0, -1), (-1, 0))
_CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_FAR = (5, 6)


def neighbour_matrices(window: int) -> Float64[np.ndarray, "3 ww ww"]:
    """Which pixels of a response map are coupled.

    The first two make edge neighbours and corner neighbours alike: they are graph
    Laplacians, `x^T S x = sum over pairs (x_i - x_j)^2`. The third keeps peaks apart:
    `x^T S x = sum over pairs (x_i + x_j)^2` for pairs five or six pixels apart along
    both axes or along one, so that a map has few places that respond.

    Args:
        window: Side of the response map.

    Returns:
        The matrices, both grid axes flattened row by row; symmetric and positive
        semidefinite.

    References:
        Baltrusaitis, Robinson, Morency 2013, equations 5 and 6 (similarity and
        sparsity edges).

    Example:
        >>> edges, corners, far = neighbour_matrices(3)
        >>> edges[4].reshape(3, 3).tolist()
        [[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]]
        >>> float(far.max())  # no two pixels of so small a window are that far apart
        0.0
    """
    far = [
        (down, right)
        for down in (0, *_FAR, *(-d for d in _FAR))
        for right in (0, *_FAR, *(-d for d in _FAR))
        if (down, right) != (0, 0)
    ]
    similar = [_adjacency(window, offsets) for offsets in (_EDGES, _CORNERS)]
    distant = _adjacency(window, far)
    return np.stack([*(_degree(a) - a for a in similar), _degree(distant) + distant])


def _adjacency(
    window: int, offsets: Sequence[tuple[int, int]]
) -> Float64[np.ndarray, "ww ww"]:
    row, column = np.divmod(np.arange(window**2), window)
    down = row[None, :] - row[:, None]
    right = column[None, :] - column[:, None]
    pairs = [(down == i) & (right == j) for i, j in offsets]
    return np.any(pairs, axis=0).astype(np.float64)


def _degree(adjacency: Float64[np.ndarray, "ww ww"]) -> Float64[np.ndarray, "ww ww"]:
    return np.diag(adjacency.sum(axis=1))
