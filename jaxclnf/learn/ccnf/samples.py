"""What patch experts learn from: areas of interest around labels, and target maps."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxclnf.experts.area import areas_of_interest
from jaxclnf.learn.faces import LabelledFaces
from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDM, PDMParams, project, shape_3d
from jaxclnf.shape.similarity import (
    align_shapes,
    inverse_similarity,
    similarity_matrix,
)


@pytree_dataclass
class FaceBank:
    """Labelled faces as arrays of one size, ready to be sampled on the device."""

    images: UInt8[Array, "f height width"]
    """Grey pictures, filled up with zeros on the right and at the bottom."""
    landmarks: Float[Array, "f n 2"]
    """Labels, pixels."""
    spread: Float[Array, "f n"]
    """Standard deviation of each label, pixels; infinite: not to be used."""
    img_from_face: Float[Array, "f 2 2"]
    """Scale times rotation from the reference frame at one pixel per millimetre."""


@pytree_dataclass
class Augmentation:
    """How much the samples are varied."""

    scale: float = 0.07
    """Standard deviation of the logarithm of the reference frame's size."""
    rotation: float = 0.07
    """Standard deviation of the reference frame's rotation, radians."""
    shift: float = 0.6
    """Largest offset of the landmark from the middle of its window, in windows; above
    one half, some windows do not show it."""
    blur: float = 0.2
    """Largest weight of each neighbour in a three-pixel smoothing."""
    noise: float = 0.12
    """Largest standard deviation of pixel noise, in those of the area's grey values."""
    gamma: float = 0.3
    """Standard deviation of the logarithm of the exponent of grey values."""


@pytree_dataclass
class Samples:
    """A batch that experts learn from."""

    areas: Float[Array, "f n a a"]
    """Areas of interest."""
    targets: Float[Array, "f n ww"]
    """What the response maps should be, row by row: 1 at the label, 0 far from it."""
    weights: Float[Array, "f n"]
    """How far the label is to be trusted, 0 to 1."""


def make_bank(pdm: PDM, faces: LabelledFaces, params: PDMParams) -> FaceBank:
    """Puts faces and their frames together.

    Args:
        pdm: The shape model.
        faces: The faces.
        params: Pose and shape of each face, fitted to its labels; one leading axis.

    Returns:
        The bank, in the dtype of the model.

    Example:
        >>> faces = LabelledFaces(names=("a",), images=(image,),
        ...     landmarks=np.asarray(project(pdm, params), np.float64)[None],
        ...     spread=np.ones((1, pdm.num_landmarks)))
        >>> one = jax.tree.map(lambda x: x[None], params)
        >>> bank = make_bank(pdm, faces, one)
        >>> bool(jnp.allclose(jnp.linalg.det(bank.img_from_face[0]) ** 0.5,
        ...     params.scale, rtol=0.05))
        True
    """
    dtype = pdm.mean_shape.dtype
    height, width = np.max([image.shape for image in faces.images], axis=0)
    images = np.zeros((len(faces), height, width), np.uint8)
    for row, image in zip(images, faces.images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return FaceBank(
        images=jnp.asarray(images),
        landmarks=jnp.asarray(faces.landmarks, dtype),
        spread=jnp.asarray(faces.spread, dtype),
        img_from_face=jax.jit(jax.vmap(_img_from_face, (None, 0)))(pdm, params),
    )


def _img_from_face(pdm: PDM, params: PDMParams) -> Float[Array, "2 2"]:
    reference = shape_3d(pdm, params.params_local)[:, :2]
    return inverse_similarity(align_shapes(project(pdm, params), reference))


def draw_samples(
    key: Array,
    bank: FaceBank,
    index: Int[Array, " b"],
    flipped: Bool[Array, " b"],
    landmarks: Int[Array, " k"],
    mirror: Int[Array, " n"],
    *,
    patch_scaling: Float[Array, ""],
    window_size: int,
    support: int,
    target_sigma: Float[Array, ""] | float = 1.0,
    augmentation: Augmentation,
) -> Samples:
    """Samples of some faces, each at a random place, size, angle and quality.

    A mirrored face is sampled with the reference frame's x axis turned round: the
    mirrored area of a landmark is that of its partner on the other side.

    Args:
        key: Random key.
        bank: The faces.
        index: Which faces.
        flipped: Which of them to mirror.
        landmarks: The landmarks to sample.
        mirror: The partner of every landmark on the other side of the face.
        patch_scaling: Pixels per millimetre of the reference frame.
        window_size: Side of the response maps.
        support: Side of the support regions.
        target_sigma: Width of the target's peak, reference pixels.
        augmentation: How much to vary.

    Returns:
        The samples. The target of a label at `c` is `exp(-|u - c|^2 / (2 sigma^2))`.

    Example:
        >>> from functools import partial
        >>> faces = LabelledFaces(names=("a",), images=(image,),
        ...     landmarks=np.asarray(project(pdm, params), np.float64)[None],
        ...     spread=np.zeros((1, pdm.num_landmarks)))
        >>> bank = make_bank(pdm, faces, jax.tree.map(lambda x: x[None], params))
        >>> draw = partial(draw_samples, window_size=7, support=11,
        ...     augmentation=Augmentation())
        >>> samples = jax.jit(draw)(jax.random.key(0), bank, jnp.asarray([0, 0]),
        ...     jnp.asarray([False, False]), jnp.arange(3),
        ...     jnp.arange(pdm.num_landmarks), patch_scaling=jnp.asarray(0.5))
        >>> samples.areas.shape, samples.targets.shape, samples.weights.shape
        ((2, 3, 17, 17), (2, 3, 49), (2, 3))
    """

    def one(key: Array, face: Int[Array, ""], flip: Bool[Array, ""]) -> Samples:
        chosen = jnp.where(flip, mirror[landmarks], landmarks)
        return _sample(
            key,
            bank,
            face,
            flip,
            chosen,
            patch_scaling,
            window_size,
            support,
            jnp.asarray(target_sigma, bank.landmarks.dtype),
            augmentation,
        )

    return jax.vmap(one)(jax.random.split(key, index.shape[0]), index, flipped)


def _sample(
    key: Array,
    bank: FaceBank,
    face: Int[Array, ""],
    flip: Bool[Array, ""],
    chosen: Int[Array, " k"],
    patch_scaling: Float[Array, ""],
    window_size: int,
    support: int,
    target_sigma: Float[Array, ""],
    augmentation: Augmentation,
) -> Samples:
    dtype = bank.landmarks.dtype
    place, quality = jax.random.split(key)
    frame_key, shift_key = jax.random.split(place)
    size, angle = jax.random.normal(frame_key, (2,), dtype)
    size = jnp.exp(jnp.asarray(augmentation.scale, dtype) * size) / patch_scaling
    angle = jnp.asarray(augmentation.rotation, dtype) * angle
    turn = similarity_matrix(size * jnp.cos(angle), size * jnp.sin(angle))
    img_from_ref = jnp.matmul(bank.img_from_face[face], turn, precision="highest")
    handed = jnp.where(flip, -1, 1).astype(dtype)
    img_from_ref = img_from_ref * jnp.stack([handed, jnp.ones_like(handed)])[None]
    reach = window_size * jnp.asarray(augmentation.shift, dtype)
    offsets = reach * jax.random.uniform(
        shift_key, (*chosen.shape, 2), dtype, minval=-1, maxval=1
    )
    labels = bank.landmarks[face, chosen]
    centers = labels - jnp.matmul(offsets, img_from_ref.T, precision="highest")
    areas = areas_of_interest(
        bank.images[face], centers, img_from_ref, window_size + support - 1
    )
    grid = jnp.arange(window_size, dtype=dtype) - (window_size - 1) / 2
    bells = jnp.exp(
        -((grid[None, :, None] - offsets[:, None, :]) ** 2) / (2 * target_sigma**2)
    )
    targets = bells[:, :, None, 1] * bells[:, None, :, 0]
    spread = bank.spread[face, chosen] / jnp.sqrt(jnp.abs(jnp.linalg.det(img_from_ref)))
    return Samples(
        areas=_worn(quality, areas, augmentation),
        targets=targets.reshape(chosen.shape[0], window_size**2),
        weights=1 / (1 + (spread / target_sigma) ** 2),
    )


def _worn(
    key: Array, areas: Float[Array, "k a a"], augmentation: Augmentation
) -> Float[Array, "k a a"]:
    """The areas of one face as another lens, sensor or exposure would show them."""
    dtype = areas.dtype
    keys = jax.random.split(key, 4)
    gamma = jnp.asarray(augmentation.gamma, dtype) * jax.random.normal(
        keys[0], (), dtype
    )
    areas = (areas / 255) ** jnp.exp(gamma)
    blur = jnp.asarray(augmentation.blur, dtype) * jax.random.uniform(
        keys[1], (), dtype
    )
    for axis in (1, 2):
        # The two ends meet, which changes only the outermost pixels.
        around = jnp.roll(areas, -1, axis) + jnp.roll(areas, 1, axis)
        areas = (1 - 2 * blur) * areas + blur * around
    noise = jnp.asarray(augmentation.noise, dtype) * jax.random.uniform(
        keys[2], (), dtype
    )
    contrast = jnp.std(areas, axis=(1, 2), keepdims=True)
    return areas + noise * contrast * jax.random.normal(keys[3], areas.shape, dtype)
