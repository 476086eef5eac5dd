"""A rigid 3D shape from 2D landmarks of many faces."""

import numpy as np
from jaxtyping import Bool, Complex, Float, Float64

_ROUNDS = 30
"""Rounds of aligning, and of filling in unknown landmarks."""


def rigid_shape(
    landmarks: Float[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    radius: float,
) -> Float64[np.ndarray, "n 3"]:
    """The rigid shape that explains the landmarks of many faces best.

    Removes position, roll and size of every face by a 2D similarity, factorises what
    is left into affine cameras and one shape, and makes the cameras scaled rotations
    (Tomasi and Kanade 1992; Poelman and Kanade 1997 for weak perspective). Unknown
    landmarks are filled in by the factorisation itself. Of the two mirror images in
    depth the one is taken whose middle is nearer to the camera than its rim.

    Args:
        landmarks: Labels, pixels.
        spread: Standard deviation of each, pixels; infinite if unknown.
        radius: Root-mean-square distance of the landmarks from their centre in the
            result, millimetres.

    Returns:
        The shape, centred, x to the right, y down, z away, in the faces' average
        orientation.

    Raises:
        ValueError: The faces turn too little to tell their depth.

    Example:
        >>> mean = np.asarray(pdm.mean_shape)
        >>> moves = np.random.default_rng(0).normal(0, 0.3, (50, 2, 3))
        >>> turns = np.linalg.qr(np.eye(3)[:, :2] + moves.swapaxes(1, 2))[0]
        >>> faces = mean @ (turns * np.sign(turns[:, [0, 1], [0, 1]])[:, None])
        >>> shape = rigid_shape(faces, np.ones((50, 12)), 60.0)
        >>> lengths = [np.linalg.norm(x[1:] - x[0], axis=1) for x in (shape, mean)]
        >>> bool(np.ptp(lengths[0] / lengths[1]) < 0.01)
        True
    """
    known = np.isfinite(spread)
    points = landmarks[..., 0] + 1j * landmarks[..., 1]
    points = _aligned(np.where(known, points, 0), known)
    rows = np.stack([np.real(points), np.imag(points)], axis=1).reshape(
        -1, points.shape[1]
    )
    seen = np.repeat(known, 2, axis=0)
    filled = np.where(seen, rows, 0)
    mean = filled.reshape(-1, 2, filled.shape[1]).sum(axis=0) / known.sum(axis=0)
    filled = np.where(seen, rows, np.tile(mean, (len(known), 1)))
    middle, basis = _rank_three(filled)
    if not known.all():
        for _ in range(_ROUNDS):
            fitted = (filled - middle) @ basis @ basis.T + middle
            filled = np.where(seen, rows, fitted)
            middle, basis = _rank_three(filled)
    cameras = ((filled - middle) @ basis).reshape(-1, 2, 3)
    upgrade = _metric_upgrade(cameras)
    cameras, shape = cameras @ upgrade, basis @ np.linalg.inv(upgrade).T
    return _oriented(cameras, shape, radius)


def _rank_three(
    rows: Float64[np.ndarray, "r n"],
) -> tuple[Float64[np.ndarray, "r 1"], Float64[np.ndarray, "n 3"]]:
    middle = rows.mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh((rows - middle).T @ (rows - middle))
    return middle, vectors[:, ::-1][:, :3]


def _aligned(
    points: Complex[np.ndarray, "f n"], known: Bool[np.ndarray, "f n"]
) -> Complex[np.ndarray, "f n"]:
    count = known.sum(axis=1, keepdims=True)
    points = np.where(known, points - points.sum(axis=1, keepdims=True) / count, 0)
    mean = points[np.argmax(count)]
    for _ in range(_ROUNDS):
        placed, _ = _onto(mean, points, known)
        mean = placed.sum(axis=0) / known.sum(axis=0)
        mean = mean - mean.mean()
        mean = mean / np.sqrt(np.mean(np.abs(mean) ** 2))
    placed, factor = _onto(mean, points, known)
    # The mean took over the roll of one face; give it the average one.
    roll = np.sum(factor / np.abs(factor))
    return placed * (roll / np.abs(roll))


def _onto(
    mean: Complex[np.ndarray, " n"],
    points: Complex[np.ndarray, "f n"],
    known: Bool[np.ndarray, "f n"],
) -> tuple[Complex[np.ndarray, "f n"], Complex[np.ndarray, "f 1"]]:
    # With landmarks missing, the mean shape's own centre differs face by face.
    offset = (known @ mean)[:, None] / known.sum(axis=1, keepdims=True)
    local = np.where(known, mean - offset, 0)
    size = np.sum(np.abs(local) ** 2, axis=1, keepdims=True)
    factor = np.sum(local.conj() * points, axis=1, keepdims=True) / size
    return np.where(known, points / factor + offset, 0), factor


def _metric_upgrade(
    cameras: Float64[np.ndarray, "f 2 3"],
) -> Float64[np.ndarray, "3 3"]:
    first, second = cameras[:, 0], cameras[:, 1]

    def quadratic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # Coefficients of a Q b in the six entries of a symmetric Q.
        i, j = np.triu_indices(3)
        return (a[:, i] * b[:, j] + a[:, j] * b[:, i]) / np.where(i == j, 2, 1)

    equal = quadratic(first, first) - quadratic(second, second)
    upright = 2 * quadratic(first, second)
    rules = np.concatenate([equal, upright])
    # The average scale is held at one. Held at unit norm instead, Q would shrink to the
    # depth direction alone where faces turn little.
    size = (quadratic(first, first) + quadratic(second, second)).mean(axis=0) / 2
    gram = rules.T @ rules / len(rules)
    gram = gram + 1e-12 * np.trace(gram) * np.eye(6)
    entries = np.linalg.solve(gram, size)
    entries = entries / (size @ entries)
    metric = np.zeros((3, 3))
    metric[np.triu_indices(3)] = entries
    metric = metric + metric.T - np.diag(np.diag(metric))
    values, vectors = np.linalg.eigh(metric)
    if values[0] <= 1e-6 * values[-1]:
        raise ValueError(
            "the labels do not tell the depth of the faces: found heads that turn too"
            " little, or wrong labels among few faces; expected more faces that turn,"
            " or a shape to start from (`start`, of `train` the key `blendshapes`)"
        )
    return vectors * np.sqrt(values)


def _oriented(
    cameras: Float64[np.ndarray, "f 2 3"],
    shape: Float64[np.ndarray, "n 3"],
    radius: float,
) -> Float64[np.ndarray, "n 3"]:
    total = np.sum(
        cameras / np.linalg.norm(cameras, axis=(1, 2), keepdims=True), axis=0
    )
    u, _, vt = np.linalg.svd(total, full_matrices=False)
    rows = u @ vt
    shape = shape @ np.concatenate([rows, np.cross(rows[:1], rows[1:])]).T
    shape = shape - shape.mean(axis=0)
    rim = np.sum(shape[:, :2] ** 2, axis=1)
    if np.sum((rim - rim.mean()) * shape[:, 2]) < 0:
        shape = shape * np.asarray([1.0, 1.0, -1.0])
    return shape * (radius / np.sqrt(np.mean(np.sum(shape**2, axis=1))))
