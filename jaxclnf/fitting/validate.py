"""Whether landmarks lie on a face: a small network looks at the warped face.

The face is warped onto the mean face of the nearest view, its grey values are made
comparable, and a convolutional network sorts them into bins of the expected error.
Other kinds of validators are in `likelihood.py` and `joint.py`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.experts.area import GreyImage
from jaxclnf.experts.responses import choose_view
from jaxclnf.fitting.warp import FaceWarp, warp_face
from jaxclnf.pytree import pytree_dataclass

CERTAINTY_THRESHOLD = 0.725
"""Above this certainty a fit is a success: OpenFace's number, for any validator."""


@pytree_dataclass
class Convolution:
    """Correlation of every map with every kernel, without a border."""

    weights: Float[Array, "v k c p q"]
    """What each kernel looks for in each map, `[row, column]`."""
    bias: Float[Array, "v k"]
    """Added to each kernel's output."""


@pytree_dataclass
class FullyConnected:
    """All inputs to all outputs; maps go in one after the other, row by row."""

    weights: Float[Array, "v i o"]
    """Weight of each input in each output."""
    bias: Float[Array, "v o"]
    """Added to each output."""


@pytree_dataclass
class MaxPooling:
    """The largest of each 2 x 2 pixels; at an odd end, of what is left."""


@pytree_dataclass
class ReLU:
    """`max(x, 0)`."""


@pytree_dataclass
class Sigmoid:
    """`1 / (1 + exp(-x))`."""


Layer = Convolution | FullyConnected | MaxPooling | ReLU | Sigmoid
"""One step of a network; the arrays hold all views."""


@pytree_dataclass
class Validator:
    """A landmark detection validator: its warp and its network for every view."""

    view_centers: Float[Array, "v 3"]
    """Pitch, yaw and roll in the middle of each view, radians."""
    warp: FaceWarp
    """How the face gets onto the mean face."""
    mean: Float[Array, "v h w"]
    """Mean over the training faces of each pixel of a face made zero-mean and
    unit-variance; unused pixels do not matter."""
    std: Float[Array, "v h w"]
    """By what the difference from that mean is divided; 1 at unused pixels."""
    layers: tuple[Layer, ...]
    """The network, whose outputs are scores of bins: the first bin stands for landmarks
    in place, the last for landmarks that miss the face."""


def validate(
    validator: Validator,
    image: GreyImage,
    landmarks: Float[Array, "n 2"],
    euler: Float[Array, " 3"],
    image_size: Int[Array, " 2"] | None = None,
) -> Float[Array, ""]:
    """How certain it is that landmarks lie on a face.

    The bins divide the range from -1 (in place) to 1 evenly; the certainty is
    `(1 - c) / 2` with the centre `c` of the bin with the largest score.

    Args:
        validator: The validator.
        image: Grey values of any type; may be padded on the right and at the bottom.
        landmarks: Landmarks, image pixels, in the type of the validator.
        euler: Pitch, yaw and roll of the face, radians.
        image_size: Height and width without the padding; default: nothing is padded.

    Returns:
        The certainty, between 0 and 1. It is 0 where there is nothing to judge:
        landmarks, angles or pixels that are not finite, landmarks wholly outside the
        image, or a face without any contrast.

    Mirrors:
        DetectionValidator::Check, which returns `c`.

    Example:
        >>> bins = FullyConnected(
        ...     weights=jnp.asarray([[[5.0, 0.0]] * 4]), bias=jnp.asarray([[0.0, 1.0]])
        ... )
        >>> square = FaceWarp(
        ...     corner=jnp.zeros((1, 2)),
        ...     triangles=jnp.asarray([[[0, 1, 2]]]),
        ...     alpha=jnp.asarray([[[0.0, 1.0, 0.0]]]),
        ...     beta=jnp.asarray([[[0.0, 0.0, 1.0]]]),
        ...     triangle_of_pixel=jnp.zeros((1, 2, 2), jnp.int32),
        ... )
        >>> tiny = Validator(
        ...     view_centers=jnp.zeros((1, 3)), warp=square, mean=jnp.zeros((1, 2, 2)),
        ...     std=jnp.ones((1, 2, 2)), layers=(ReLU(), bins),
        ... )
        >>> float(validate(tiny, image, landmarks, jnp.zeros(3)))
        0.75
    """
    outputs = validator_outputs(validator, image, landmarks, euler, image_size)
    num_bins = outputs.shape[0]
    best = jnp.argmax(outputs).astype(outputs.dtype)
    known = jnp.all(jnp.isfinite(outputs))
    return jnp.where(known, 1 - (best + 0.5) / num_bins, 0)


def validator_outputs(
    validator: Validator,
    image: GreyImage,
    landmarks: Float[Array, "n 2"],
    euler: Float[Array, " 3"],
    image_size: Int[Array, " 2"] | None = None,
) -> Float[Array, " b"]:
    """The scores of the bins, from which `validate` takes the largest.

    Args:
        validator: The validator.
        image: As for `validate`.
        landmarks: As for `validate`.
        euler: As for `validate`.
        image_size: As for `validate`.

    Returns:
        The network's last layer; NaN where there is nothing to judge.

    Example:
        >>> corner = FaceWarp(
        ...     corner=jnp.zeros((1, 2)),
        ...     triangles=jnp.asarray([[[0, 1, 2]]]),
        ...     alpha=jnp.asarray([[[0.0, 1.0, 0.0]]]),
        ...     beta=jnp.asarray([[[0.0, 0.0, 1.0]]]),
        ...     triangle_of_pixel=jnp.asarray([[[0, 0], [0, -1]]]),
        ... )
        >>> no_network = Validator(
        ...     view_centers=jnp.zeros((1, 3)), warp=corner, mean=jnp.zeros((1, 2, 2)),
        ...     std=jnp.ones((1, 2, 2)), layers=(),
        ... )
        >>> points = jnp.asarray([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
        >>> ramp = jnp.tile(jnp.arange(9.0), (9, 1))
        >>> scores = validator_outputs(no_network, ramp, points, jnp.zeros(3))
        >>> [round(float(score), 3) for score in scores]  # the pixels themselves
        [-0.707, 1.414, -0.707, 0.0]
    """
    if image_size is None:
        image_size = jnp.asarray(image.shape, jnp.int32)
    # Beyond this, coordinates of float32 no longer tell parts of a pixel apart.
    usable = jnp.all(jnp.abs(landmarks) < 1 << 22) & jnp.all(jnp.isfinite(euler))
    landmarks = jnp.where(usable, landmarks, 0)
    view = choose_view(validator.view_centers, euler)
    feature = validator_feature(validator, view, image, landmarks, image_size)
    is_finite = jnp.all(jnp.isfinite(feature))
    # Without NaN on the way, of which derivatives would become NaN.
    feature = jnp.where(is_finite, feature, 0)
    outputs = run_layers(validator.layers, view, feature)
    return jnp.where(usable & is_finite, outputs, jnp.nan)


def validator_feature(
    validator: Validator,
    view: Int[Array, ""],
    image: GreyImage,
    landmarks: Float[Array, "n 2"],
    image_size: Int[Array, " 2"],
) -> Float[Array, "h w"]:
    """What the network sees: the warped face, made comparable to other faces.

    The used pixels are made zero-mean and unit-variance (variance over the number of
    pixels, not one less); then each pixel's own mean is taken away and the rest divided
    by its `std`.

    Args:
        validator: The validator.
        view: Which view to use.
        image: As for `validate`.
        landmarks: Landmarks, finite, image pixels.
        image_size: Height and width without the padding.

    Returns:
        The picture; 0 at unused pixels. Used ones are NaN if the face has no contrast.

    Example:
        >>> square = FaceWarp(
        ...     corner=jnp.zeros((1, 2)),
        ...     triangles=jnp.asarray([[[0, 1, 2]]]),
        ...     alpha=jnp.asarray([[[0.0, 1.0, 0.0]]]),
        ...     beta=jnp.asarray([[[0.0, 0.0, 1.0]]]),
        ...     triangle_of_pixel=jnp.zeros((1, 2, 2), jnp.int32),
        ... )
        >>> no_network = Validator(
        ...     view_centers=jnp.zeros((1, 3)), warp=square, mean=jnp.ones((1, 2, 2)),
        ...     std=jnp.full((1, 2, 2), 0.1), layers=(),
        ... )
        >>> points = jnp.asarray([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
        >>> ramp = jnp.tile(jnp.arange(9.0), (9, 1))
        >>> view, size = jnp.asarray(0), jnp.asarray(ramp.shape)
        >>> validator_feature(no_network, view, ramp, points, size).round(3).tolist()
        [[-20.0, 0.0], [-20.0, 0.0]]
    """
    grey = warp_face(validator.warp, view, image, landmarks, image_size)
    used = validator.warp.triangle_of_pixel[view] >= 0
    count = jnp.sum(used, dtype=grey.dtype)
    difference = jnp.where(used, grey - jnp.sum(grey) / count, 0)
    squared = jnp.sum(difference**2) / count
    # Rounding alone leaves about this much contrast in a face of equal pixels.
    rounding = 32 * jnp.finfo(grey.dtype).eps * jnp.max(jnp.abs(grey))
    flat = squared <= rounding**2
    standard = difference / jnp.sqrt(jnp.where(flat, 1, squared))
    feature = (standard - validator.mean[view]) / validator.std[view]
    return jnp.where(used, jnp.where(flat, jnp.nan, feature), 0)


def run_layers(
    layers: Sequence[Layer], view: Int[Array, ""], image: Float[Array, "h w"]
) -> Float[Array, " b"]:
    """Runs a network on one picture.

    Args:
        layers: The network, of all views.
        view: Which view's weights to use.
        image: The picture.

    Returns:
        The last layer's outputs, as one vector.

    Mirrors:
        DetectionValidator::CheckCNN.

    Example:
        >>> picture = jnp.asarray([[1.0, -2.0, 3.0], [0.0, 1.0, -5.0]])
        >>> run_layers((MaxPooling(), ReLU()), jnp.asarray(0), picture).tolist()
        [1.0, 3.0]
    """
    maps = image[None]
    for layer in layers:
        match layer:
            case Convolution():
                maps = _convolve(maps, layer.weights[view])
                maps = maps + layer.bias[view][:, None, None]
            case FullyConnected():
                # As a plain sum: XLA's CPU compiler would compute `maps` again for
                # every output of a product.
                products = maps.reshape(-1)[:, None] * layer.weights[view]
                maps = jnp.sum(products, axis=0) + layer.bias[view]
            case MaxPooling():
                maps = _pool(maps)
            case ReLU():
                maps = jax.nn.relu(maps)
            case Sigmoid():
                maps = jax.nn.sigmoid(maps)
    return maps.reshape(-1)


def _convolve(
    maps: Float[Array, "c h w"], weights: Float[Array, "k c p q"]
) -> Float[Array, "k _ _"]:
    k, c, p, q = weights.shape
    height, width = maps.shape[1] - p + 1, maps.shape[2] - q + 1
    # Unfolding columns alone, with the kernels' rows as further kernels: moves less
    # memory than unfolding whole regions, and is faster on CPU than XLA's convolution.
    columns = jnp.stack([maps[:, :, j : j + width] for j in range(q)], axis=1)
    by_row = jnp.matmul(
        weights.transpose(2, 0, 1, 3).reshape(p * k, c * q),
        columns.reshape(c * q, maps.shape[1] * width),
        precision="highest",
    ).reshape(p, k, maps.shape[1], width)
    first, *others = [by_row[i, :, i : i + height] for i in range(p)]
    return sum(others, first)


def _pool(maps: Float[Array, "c h w"]) -> Float[Array, "c _ _"]:
    _, height, width = maps.shape
    lowest = jnp.asarray(-jnp.inf, maps.dtype)
    to_even = ((0, 0), (0, height % 2), (0, width % 2))
    square = (1, 2, 2)
    return jax.lax.reduce_window(maps, lowest, jax.lax.max, square, square, to_even)
