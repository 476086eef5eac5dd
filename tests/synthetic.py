"""A made-up face with a known answer: textured image, matched experts, true landmarks.

The image is smooth noise of several sizes, so that no place looks like another. The
experts' filters are what the reference frame shows around each true landmark, so their
responses peak there.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclnf.experts.area import areas_of_interest
from jaxclnf.experts.responses import response_maps
from jaxclnf.experts.types import CCNFExperts, SVRExperts
from jaxclnf.fitting.model import CLNFModel, CLNFPart, ModelInfo
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.schedule import begin_scales
from jaxclnf.learn.ccnf.samples import FaceBank
from jaxclnf.learn.ccnf.tasks import FieldOptions, FieldTask
from jaxclnf.shape.pdm import PDM, PDMParams, bounding_box, project, shape_3d
from jaxclnf.shape.similarity import align_shapes, inverse_similarity

SIDE = 11
"""Support region of the filters."""
IMAGE_SHAPE = (240, 260)


def make_pdm(seed: int = 0, num_modes: int = 4, dtype: Any = np.float64) -> PDM:
    """Twelve landmarks on a curved 120 x 100 mm grid, with random smooth modes."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-60, 60, 4), np.linspace(-50, 50, 3))
    grid = np.stack([x.ravel(), y.ravel()], axis=1) + rng.normal(0, 4, (12, 2))
    depth = 0.006 * np.sum(grid**2, axis=1) + rng.normal(0, 3, 12)
    mean = np.concatenate([grid, depth[:, None]], axis=1)
    modes, _ = np.linalg.qr(rng.normal(size=(36, num_modes)))
    return PDM(
        mean_shape=jnp.asarray(mean - mean.mean(axis=0), dtype),
        princ_comp=jnp.asarray(modes.reshape(12, 3, num_modes), dtype),
        eigen_values=jnp.asarray(100.0 / 2 ** np.arange(num_modes), dtype),
    )


def make_params(
    pdm: PDM,
    *,
    scale: float = 1.1,
    euler: tuple[float, float, float] = (0.05, -0.1, 0.08),
    translation: tuple[float, float] = (128.3, 119.6),
    modes: float = 0.4,
) -> PDMParams:
    """Parameters with every mode at `modes` standard deviations, signs alternating."""
    dtype = pdm.mean_shape.dtype
    signs = np.where(np.arange(pdm.num_modes) % 2 == 0, 1.0, -1.0)
    vector = jnp.asarray([scale, *euler, *translation], dtype)
    local = jnp.asarray(modes * signs, dtype) * jnp.sqrt(pdm.eigen_values)
    return jax.jit(PDMParams.from_global)(vector, local)


def make_image(seed: int = 0, shape: tuple[int, int] = IMAGE_SHAPE) -> np.ndarray:
    """Smooth noise of several sizes, uint8."""
    rng = np.random.default_rng(seed)
    fy = np.fft.fftfreq(shape[0])[:, None]
    fx = np.fft.rfftfreq(shape[1])[None, :]
    total = np.zeros(shape)
    for blur in (3.0, 6.0, 12.0):
        spectrum = np.fft.rfft2(rng.normal(size=shape))
        low_pass = np.exp(-2 * (np.pi * blur) ** 2 * (fx**2 + fy**2))
        layer = np.fft.irfft2(spectrum * low_pass, s=shape)
        total += layer / layer.std()
    return np.clip(128 + 35 * total, 0, 255).astype(np.uint8)


def neighbour_matrices(window: int, dtype: Any = np.float64) -> np.ndarray:
    """Laplacians of edge and corner neighbours and a signless one, `(3, ww, ww)`."""

    def adjacency(offsets: list[tuple[int, int]]) -> np.ndarray:
        matrix = np.zeros((window, window, window, window))
        for i in range(window):
            for j in range(window):
                for di, dj in offsets:
                    if 0 <= i + di < window and 0 <= j + dj < window:
                        matrix[i, j, i + di, j + dj] = 1
        return matrix.reshape(window**2, window**2)

    def degree(matrix: np.ndarray) -> np.ndarray:
        return np.diag(matrix.sum(axis=1))

    edges = adjacency([(0, 1), (0, -1), (1, 0), (-1, 0)])
    corners = adjacency([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    far = adjacency([(0, 5), (0, -5), (5, 0), (-5, 0)])
    return np.stack(
        [degree(edges) - edges, degree(corners) - corners, degree(far) + far]
    ).astype(dtype)


def make_experts(
    pdm: PDM, truth: PDMParams, image: np.ndarray, patch_scaling: float
) -> CCNFExperts:
    """Experts of two views whose first neuron matches the image at the truth.

    Landmark 0 has no expert in the second view; the second neuron is too weak to count.
    """
    dtype = pdm.mean_shape.dtype
    filters = _true_patches(pdm, truth, image, patch_scaling)
    n = pdm.num_landmarks
    other = np.random.default_rng(1).normal(size=filters.shape)
    weights = np.stack([filters, _unit(other)], axis=1)
    alpha = np.tile([9.0, 5e-5], (2, n, 1))
    alpha[1, 0] = 0
    visibility = np.ones((2, n), bool)
    visibility[1, 0] = False
    return CCNFExperts(
        patch_scaling=jnp.asarray(patch_scaling, dtype),
        view_centers=jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.6, 0.0]], dtype),
        visibility=jnp.asarray(visibility),
        weights=jnp.asarray(np.stack([weights, weights]), dtype),
        norm_weights=jnp.full((2, n, 2), 8.0, dtype),
        bias=jnp.full((2, n, 2), -4.0, dtype),
        alpha=jnp.asarray(alpha, dtype),
        beta=jnp.broadcast_to(jnp.asarray([3.0, 1.5, 1.0], dtype), (2, n, 3)),
        confidence=jnp.asarray(np.linspace(0.3, 0.9, 2 * n).reshape(2, n), dtype),
        neighbours={w: jnp.asarray(neighbour_matrices(w), dtype) for w in (7, 9)},
        sigma={},
    )


def make_svr_experts(
    pdm: PDM, truth: PDMParams, image: np.ndarray, patch_scaling: float
) -> SVRExperts:
    """One view of grey-value templates that match the image at the truth."""
    dtype = pdm.mean_shape.dtype
    filters = _true_patches(pdm, truth, image, patch_scaling)
    n = pdm.num_landmarks
    return SVRExperts(
        patch_scaling=jnp.asarray(patch_scaling, dtype),
        view_centers=jnp.zeros((1, 3), dtype),
        visibility=jnp.ones((1, n), bool),
        weights=jnp.asarray(filters[None, :, None], dtype),
        scaling=jnp.full((1, n, 1), 8.0, dtype),
        bias=jnp.full((1, n, 1), -4.0, dtype),
        confidence=jnp.ones((1, n), dtype),
        modalities=("grey",),
    )


def _true_patches(
    pdm: PDM, truth: PDMParams, image: np.ndarray, patch_scaling: float
) -> np.ndarray:
    return _unit(np.asarray(_patches(pdm, truth, image, patch_scaling)))


@jax.jit
def _patches(
    pdm: PDM, params: PDMParams, image: jax.Array, patch_scaling: float
) -> jax.Array:
    landmarks = project(pdm, params)
    reference = patch_scaling * shape_3d(pdm, params.params_local)[:, :2]
    img_from_ref = inverse_similarity(align_shapes(landmarks, reference))
    return areas_of_interest(image, landmarks, img_from_ref, SIDE)


def _unit(patches: np.ndarray) -> np.ndarray:
    patches = patches - patches.mean(axis=(1, 2), keepdims=True)
    return patches / np.sqrt(np.sum(patches**2, axis=(1, 2), keepdims=True))


@cache
def example(dtype: Any = np.float64) -> dict[str, Any]:
    """What the doctests and many tests use.

    Returns:
        `pdm`, `model` (two scales), the same `with_part`, `image`, `truth` and its
        `landmarks` and `box`, a start `params` a little off, `responses` of the first
        scale there, and the `progress` of a fit before it.
    """
    pdm = make_pdm(dtype=dtype)
    truth = make_params(pdm)
    image = make_image()
    params = make_params(
        pdm, scale=1.07, euler=(0.0, 0.0, 0.05), translation=(126.5, 121.0), modes=0.0
    )
    experts = tuple(make_experts(pdm, truth, image, s) for s in (0.35, 0.5))
    part = CLNFPart(
        model=CLNFModel(pdm=pdm, experts=experts[1:], info=ModelInfo(name="part")),
        main_index=jnp.arange(3, dtype=jnp.int32),
        part_index=jnp.arange(3, dtype=jnp.int32),
        name="part",
    )
    model = CLNFModel(
        pdm=pdm,
        experts=experts,
        triangulations=(jnp.asarray([[0, 1, 4]], jnp.int32),),
        info=ModelInfo(name="synthetic", licence="public domain", provenance="tests"),
    )
    landmarks = jax.jit(project)(pdm, truth)
    look = jax.jit(response_maps, static_argnames="window_size")
    return {
        "pdm": pdm,
        "model": model,
        "with_part": dataclasses.replace(model, parts=(part,)),
        "image": image,
        "truth": truth,
        "landmarks": landmarks,
        "box": bounding_box(landmarks),
        "params": params,
        "responses": look(pdm, experts[0], jnp.asarray(image), params, 7),
        "progress": jax.jit(begin_scales)(
            model, jnp.asarray(image.shape), params, FitOptions()
        ),
    }


def field_task() -> tuple[FieldTask, FieldOptions]:
    """Two landmarks of the example's picture, to learn from and to check on."""
    found = example()
    bank = FaceBank(
        images=jnp.asarray(found["image"])[None],
        landmarks=found["landmarks"][None],
        spread=jnp.zeros((1, 12)),
        img_from_face=jnp.eye(2)[None],
    )
    face, plain = jnp.zeros(1, jnp.int32), jnp.zeros(1, bool)
    task = FieldTask(
        bank=bank,
        faces=face,
        flipped=plain,
        check_faces=face,
        check_flipped=plain,
        landmarks=jnp.arange(2),
        mirror=jnp.arange(12),
        patch_scaling=jnp.asarray(0.5),
    )
    return task, FieldOptions(window_size=5, support=3, num_neurons=1, num_epochs=2)
