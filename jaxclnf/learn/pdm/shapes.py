"""Shape models from 3D shapes, and 3D shapes from a blendshape model of the face."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int

from jaxclnf.learn.pdm.symmetry import mirror_shapes
from jaxclnf.shape.pdm import PDM

_ALIGNMENT_ROUNDS = 50
_AT_REST = 1e-9
"""The alignment stops when the mean shape moves by less, relative to its size."""
NUM_FIXED = 7
"""Degrees of freedom that alignment takes away: position, rotation and size."""


def pdm_from_shapes(
    shapes: Float[np.ndarray, "f n 3"],
    *,
    num_modes: int | None = None,
    variance: float = 0.98,
    weights: Float[np.ndarray, " f"] | None = None,
    mirror: Int[np.ndarray, " n"] | None = None,
    remove_size: bool = True,
) -> PDM:
    """A shape model from 3D shapes: alignment, then principal components.

    Generalised Procrustes analysis (Gower 1975) turns, shifts and resizes every shape
    onto the mean of all; the modes are the principal components of what differs then.

    Args:
        shapes: Shapes in millimetres, x to the right, y down, z away from the camera.
        num_modes: How many modes to keep; as `variance` tells if not given.
        variance: Share of the variance that the kept modes must explain.
        weights: How much each shape counts; all the same if not given.
        mirror: Each landmark's mirror image, see `mirror_index`. If given, every
            shape's mirror image counts too, so that the model is symmetric.
        remove_size: Whether sizes are made equal before modes are sought. In a picture
            a larger face cannot be told from a nearer one, so they usually should.

    Returns:
        The model: its mean is centred, of the shapes' average size and orientation,
        its modes are orthonormal and the largest entry of each is positive. Precision
        is that of `shapes`.

    Raises:
        ValueError: A shape is not finite or is a single point, the weights do not fit,
            or there are too few shapes for that many modes.

    Example:
        >>> local = np.random.default_rng(0).normal(0, 5, (40, pdm.num_modes))
        >>> shapes = np.asarray(jax.vmap(shape_3d, (None, 0))(pdm, local))
        >>> pdm_from_shapes(shapes, num_modes=4).princ_comp.shape
        (12, 3, 4)
    """
    points, weight = _checked(shapes, weights)
    if mirror is not None:
        points = np.concatenate([points, mirror_shapes(points, mirror)])
        weight = np.concatenate([weight, weight]) / 2
    num_faces, num_landmarks = points.shape[:2]
    most = min(num_faces - 1, 3 * num_landmarks - NUM_FIXED)
    if num_modes is not None and not 0 < num_modes <= most:
        raise ValueError(
            f"num_modes is {num_modes}; {num_faces} shapes of {num_landmarks} landmarks"
            f" give 1 to {most} modes"
        )
    mean, aligned = _aligned(points, weight, remove_size)
    if mirror is not None:
        mean = (mean + mirror_shapes(mean, mirror)) / 2
    moves = np.sqrt(weight)[:, None] * (aligned - mean).reshape(num_faces, -1)
    values, vectors = np.linalg.eigh(moves.T @ moves)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if num_modes is None:
        num_modes = modes_for_variance(values[:most], variance)
    dtype = jax.dtypes.canonicalize_dtype(shapes.dtype)
    modes = with_fixed_signs(vectors[:, :num_modes])
    return PDM(
        mean_shape=jnp.asarray(mean, dtype),
        princ_comp=jnp.asarray(modes.reshape(num_landmarks, 3, num_modes), dtype),
        eigen_values=jnp.asarray(values[:num_modes], dtype),
    )


def modes_for_variance(eigen_values: Float[np.ndarray, " k"], variance: float) -> int:
    """How many modes explain a share of the variance.

    Args:
        eigen_values: Variance of each mode, largest first.
        variance: The share, above 0 and at most 1.

    Returns:
        The smallest sufficient number of modes, at least one.

    Raises:
        ValueError: The share is out of range, or there is no variance at all.

    Example:
        >>> modes_for_variance(np.asarray([6.0, 3.0, 1.0]), 0.9)
        2
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance is {variance}; expected a share in (0, 1]")
    explained = np.cumsum(eigen_values)
    if not explained[-1] > 0:
        raise ValueError("all shapes are the same, so they have no modes")
    enough = explained >= (variance - 1e-12) * explained[-1]
    return int(np.argmax(enough)) + 1


def with_fixed_signs(
    modes: Float64[np.ndarray, "k m"],
) -> Float64[np.ndarray, "k m"]:
    """Turns modes so that the first of each one's largest entries is positive.

    Args:
        modes: One mode per column; the sign of each is arbitrary.

    Returns:
        The modes with their signs fixed.

    Example:
        >>> with_fixed_signs(np.asarray([[0.6, -0.8], [-0.8, -0.6]])).tolist()
        [[-0.6, 0.8], [0.8, 0.6]]
    """
    size = np.abs(modes)
    # In a symmetric model the largest entries come in pairs that rounding must not
    # choose from.
    first = np.argmax(size > 0.999 * size.max(axis=0), axis=0)
    return modes * np.where(modes[first, np.arange(modes.shape[1])] < 0, -1.0, 1.0)


def camera_frame(
    points: Float[np.ndarray, "*k 3"], millimetres: float = 10.0
) -> Float[np.ndarray, "*k 3"]:
    """Points or moves of a model with y up and z out of the face, in our frame.

    That is half a turn about x: afterwards y points down and z away from the camera.

    Args:
        points: Positions or displacements.
        millimetres: Length of the model's unit; by default a centimetre.

    Returns:
        The same in millimetres.

    Example:
        >>> camera_frame(np.asarray([1.0, 2.0, 3.0])).tolist()
        [10.0, -20.0, -30.0]
    """
    return points * (millimetres * np.asarray([1.0, -1.0, -1.0], points.dtype))


def sample_shapes(
    neutral: Float[np.ndarray, "n 3"],
    identity: Float[np.ndarray, "i n 3"],
    expression: Float[np.ndarray, "e n 3"],
    expression_weights: Float[np.ndarray, "f e"],
    *,
    seed: int = 0,
    identity_spread: float = 1.0,
) -> Float[np.ndarray, "f n 3"]:
    """Random people with given expressions, from a linear model of the face.

    Args:
        neutral: The average neutral face.
        identity: Moves of the landmarks per unit of each identity weight; the weights
            are drawn from a standard normal distribution.
        expression: Moves per unit of each expression weight.
        expression_weights: Each face's expression, see `sample_expressions`.
        seed: Of the random numbers.
        identity_spread: Standard deviation of the identity weights.

    Returns:
        One shape per row of `expression_weights`, in the unit and frame of the model;
        see `camera_frame`.

    Raises:
        ValueError: The parts of the model do not fit together.

    Example:
        >>> face, moves = np.zeros((5, 3)), np.ones((2, 5, 3))
        >>> sample_shapes(face, moves, moves, np.zeros((8, 2))).shape
        (8, 5, 3)
    """
    parts = {"identity": identity.shape[1:], "expression": expression.shape[1:]}
    for name, shape in parts.items():
        if shape != neutral.shape:
            raise ValueError(f"{name} moves {shape}, but neutral is {neutral.shape}")
    if expression_weights.shape[1] != len(expression):
        raise ValueError(
            f"{expression_weights.shape[1]} weights a face for {len(expression)}"
            " expressions"
        )
    rng = np.random.default_rng(seed)
    size = (len(expression_weights), len(identity))
    people = identity_spread * rng.normal(size=size)
    moves = people @ identity.reshape(len(identity), -1)
    moves += expression_weights @ expression.reshape(len(expression), -1)
    return neutral + moves.reshape(-1, *neutral.shape).astype(neutral.dtype)


_OFTEN = {"mouthSmile": 0.35, "jawOpen": 0.35, "eyeBlink": 0.25, "mouthClose": 0.0}
"""How often an expression is seen, where that is not the general share."""
_OPPOSITES = (
    ("mouthSmile", "mouthFrown"),
    ("eyeWide", "eyeBlink"),
    ("jawLeft", "jawRight"),
    ("mouthLeft", "mouthRight"),
    ("browDown", "browOuterUp"),
    ("mouthFunnel", "mouthStretch"),
    ("mouthPucker", "mouthSmile"),
    ("mouthRollLower", "mouthLowerDown"),
    ("mouthRollUpper", "mouthUpperUp"),
    ("mouthPress", "jawOpen"),
)
"""Expressions that no face shows together; the first stays."""


def sample_expressions(
    names: Sequence[str],
    num_shapes: int,
    *,
    seed: int = 0,
    often: float = 0.1,
    one_sided: float = 0.15,
) -> Float64[np.ndarray, "f e"]:
    """Random expression weights in [0, 1], few of them at a time.

    An expression is absent from most faces. Where it is present its weight is drawn
    from a Beta(1.2, 2) distribution, and both sides of a pair (`..._L`, `..._R`) get
    nearly the same, unless only one side moves. Opposites do not meet, and
    `mouthClose`, which only corrects an open jaw, stays below `jawOpen`. Names are
    ARKit's; expressions of other names follow the general rule.

    Args:
        names: Name of each expression.
        num_shapes: How many faces.
        seed: Of the random numbers.
        often: Share of the faces that show an expression; smiles, open jaws and
            narrowed eyes are more frequent.
        one_sided: Share of the pairs where only one side moves.

    Returns:
        The weights of every face.

    Example:
        >>> weights = sample_expressions(["mouthSmile_L", "mouthSmile_R"], 100)
        >>> bool(np.corrcoef(weights.T)[0, 1] > 0.5)
        True
    """
    rng = np.random.default_rng(seed)
    stems = [name.removesuffix("_L").removesuffix("_R") for name in names]
    common: dict[str, Float64[np.ndarray, " f"]] = {}
    for stem in dict.fromkeys(stems):
        shown = rng.random(num_shapes) < _OFTEN.get(stem, often)
        common[stem] = shown * rng.beta(1.2, 2.0, num_shapes)
    for first, second in _OPPOSITES:
        if first in common and second in common:
            common[second] = np.where(common[first] > 0, 0.0, common[second])
    if "mouthClose" in common and "jawOpen" in common:
        closed = (rng.random(num_shapes) < 0.2) * rng.beta(2.0, 2.0, num_shapes)
        common["mouthClose"] = closed * common["jawOpen"]
    alone = {stem: rng.random(num_shapes) < one_sided for stem in common}
    left = {stem: rng.random(num_shapes) < 0.5 for stem in common}
    columns = []
    for name, stem in zip(names, stems, strict=True):
        column = common[stem]
        if name != stem:
            moves = ~alone[stem] | (left[stem] == name.endswith("_L"))
            column = column * moves * rng.normal(1.0, 0.1, num_shapes)
        columns.append(np.clip(column, 0.0, 1.0))
    return np.stack(columns, axis=1)


def _checked(
    shapes: np.ndarray, weights: np.ndarray | None
) -> tuple[Float64[np.ndarray, "f n 3"], Float64[np.ndarray, " f"]]:
    if shapes.ndim != 3 or shapes.shape[-1] != 3 or len(shapes) < 2:
        raise ValueError(
            f"shapes is {shapes.shape}; expected (f, n, 3) with at least two shapes"
        )
    points = shapes.astype(np.float64)
    bad = np.flatnonzero(~np.all(np.isfinite(points), axis=(1, 2)))
    if len(bad):
        raise ValueError(f"not finite: {named(bad)}")
    points = points - points.mean(axis=1, keepdims=True)
    bad = np.flatnonzero(~np.any(points, axis=(1, 2)))
    if len(bad):
        raise ValueError(f"all landmarks in one place: {named(bad)}")
    if weights is None:
        weights = np.ones(len(points))
    weights = weights.astype(np.float64)
    if weights.shape != (len(points),):
        raise ValueError(f"{weights.shape} weights for {len(points)} shapes")
    if not (np.all(np.isfinite(weights)) and np.all(weights >= 0) and weights.any()):
        raise ValueError("weights must be finite and not negative, and not all zero")
    return points, weights / weights.sum()


def named(faces: Int[np.ndarray, " k"]) -> str:
    """Names some faces in a message, not more of them than can be read.

    Args:
        faces: Their indices.

    Returns:
        A phrase.

    Example:
        >>> named(np.arange(20))
        'faces 0, 1, 2, 3, 4, 5, 6, 7 and 12 more'
    """
    some = ", ".join(str(i) for i in faces[:8])
    more = f" and {len(faces) - 8} more" if len(faces) > 8 else ""
    return f"face{'s' if len(faces) > 1 else ''} {some}{more}"


def _aligned(
    points: Float64[np.ndarray, "f n 3"],
    weight: Float64[np.ndarray, " f"],
    remove_size: bool,
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "f n 3"]]:
    sizes = np.sqrt(np.mean(points**2, axis=(1, 2)))
    size = weight @ sizes
    mean = points[np.argmax(weight)]
    for _ in range(_ALIGNMENT_ROUNDS):
        before = mean * (size / np.sqrt(np.mean(mean**2)))
        _, aligned = _onto(before, points, remove_size)
        mean = np.einsum("f,fna->na", weight, aligned)
        if np.abs(mean - before).max() < _AT_REST * size:
            break
    mean = mean * (size / np.sqrt(np.mean(mean**2)))
    rotations, aligned = _onto(mean, points, remove_size)
    mean = np.einsum("f,fna->na", weight, aligned)
    # The mean took over the orientation of one shape; give it the average one.
    back = nearest_rotation(np.einsum("f,fab->ab", weight, rotations)).T
    return mean @ back.T, aligned @ back.T


def _onto(
    mean: Float64[np.ndarray, "n 3"],
    points: Float64[np.ndarray, "f n 3"],
    remove_size: bool,
) -> tuple[Float64[np.ndarray, "f 3 3"], Float64[np.ndarray, "f n 3"]]:
    rotations = nearest_rotation(np.einsum("na,fnb->fab", mean, points))
    aligned = points @ rotations.swapaxes(1, 2)
    if remove_size:
        along = np.einsum("fna,na->f", aligned, mean)
        factor = along / np.sum(points**2, axis=(1, 2))
        aligned = aligned * factor[:, None, None]
    return rotations, aligned


def nearest_rotation(
    matrices: Float64[np.ndarray, "*f 3 3"],
) -> Float64[np.ndarray, "*f 3 3"]:
    """The rotation nearest to each matrix.

    Args:
        matrices: Any matrices.

    Returns:
        Rotations `R` with the largest `trace(R.T @ matrix)`.

    Example:
        >>> nearest_rotation(np.diag([2.0, 3.0, 1.0])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    u, _, vt = np.linalg.svd(matrices)
    u[..., :, -1] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt
