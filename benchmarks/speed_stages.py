"""Stages of the response maps beside what the machine allows, for `speed.py`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from speed_machine import median_ms, on_cpu

import jaxclnf
from jaxclnf.experts.area import areas_of_interest
from jaxclnf.experts.ccnf import neuron_sum
from jaxclnf.experts.sigma import apply_sigma
from jaxclnf.experts.types import CCNFExperts

MANY = 256
"""Faces at once on an accelerator, as in a chunk of `fit_many`: what one face needs is
less there than the call itself."""


class Work(NamedTuple):
    """What a stage cannot do without."""

    flops: int
    """Operations."""
    numbers: int
    """Numbers of four bytes that it reads and writes."""


def stages(
    model: jaxclnf.CLNFModel, grey: np.ndarray, boxes: np.ndarray, rates: dict
) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The stages of each scale's response maps, beside what flops and bytes allow.

    On CPU those of one face, elsewhere those of `MANY` at once. On CPU a floor may be
    passed where arrays stay in the cache between two calls.

    Args:
        model: The model; scales whose experts are not CCNF are left out.
        grey: The photograph.
        boxes: Boxes of `MANY` faces.
        rates: What the machine can do, from `rates`; without, there are no floors.

    Yields:
        A name, and what measures it.
    """
    faces = 1 if on_cpu() else MANY
    image, view = jnp.asarray(grey), jnp.zeros((), jnp.int32)

    def placed(box: jax.Array) -> tuple[jax.Array, jax.Array]:
        starts = jaxclnf.starts_from_box(model.pdm, box, 1)
        params = jax.tree.map(lambda x: x[0], starts)
        return jaxclnf.project(model.pdm, params), params.scale

    def of_all(function: Callable, *axes: int | None) -> Callable:
        return jax.jit(function if faces == 1 else jax.vmap(function, in_axes=axes))

    some = jnp.asarray(boxes[0] if faces == 1 else boxes[:faces])
    shapes, scales = of_all(placed, 0)(some)
    windows = jaxclnf.FitOptions().window_sizes
    for scale, (experts, window) in enumerate(
        zip(model.experts, windows, strict=False)
    ):
        if not window or not isinstance(experts, CCNFExperts):
            continue
        frames = jnp.tensordot(scales / experts.patch_scaling, jnp.eye(2), axes=0)
        area = window + experts.support - 1
        sample = of_all(partial(areas_of_interest, size=area), None, 0, 0)
        neurons = of_all(neuron_sum, None, None, 0)
        smooth = of_all(apply_sigma, None, None, 0)
        areas = sample(image, shapes, frames)
        fields = jax.block_until_ready(neurons(experts, view, areas))
        calls = {
            "sampling": partial(sample, image, shapes, frames),
            "neurons": partial(neurons, experts, view, areas),
            "sigma": partial(smooth, experts, view, fields),
        }
        for stage, work in stage_work(experts, window, faces, on_cpu()).items():
            name = f"{stage}, scale {scale}, window {window}"
            yield name, partial(_stage, calls[stage], work, faces, rates)


def stage_work(
    experts: CCNFExperts, window: int, faces: int, one_view: bool
) -> dict[str, Work]:
    """What the stages of one scale have to do.

    Args:
        experts: The experts of that scale.
        window: Side of its maps.
        faces: How many faces at once; they share filters and matrices.
        one_view: Whether only one view's Sigma is read, as on CPU, or all of them.

    Returns:
        The work of each stage; none for Sigma where it is not kept for this window.

    Example:
        >>> experts = model.prepared((7,)).experts[0]
        >>> stage_work(experts, 7, 1, True)["sampling"].numbers == 12 * 17**2
        True
    """
    _, n, filters, side, _ = experts.weights.shape
    patches = faces * n * (window + side - 1) ** 2
    fields = faces * n * window**2
    work = {
        # Neighbours look at the same pixels: what is read is little.
        "sampling": Work(8 * patches, patches),
        "neurons": Work(
            2 * fields * filters * side**2,
            patches + n * filters * side**2 + fields,
        ),
    }
    kept = experts.sigma.get(window, ())[: 1 if one_view else None]
    if kept:
        numbers = sum(one.size for one in kept)
        flops = 2 * faces * numbers
        if kept[0].ndim > 3:
            # Blocks: to even and odd maps and back, with a matrix for all landmarks.
            basis = 4 * kept[0].shape[-1] * window**2
            numbers += basis
            flops += 4 * faces * n * basis
        work["sigma"] = Work(flops, numbers + 2 * fields)
    return work


def _stage(call: Callable, work: Work, faces: int, rates: dict) -> dict:
    jax.block_until_ready(call())
    row: dict = {"faces": faces, "ms": round(median_ms(call, 1.0), 4)}
    if "gflops" in rates:
        row |= floors(row["ms"], work, rates)
    return row


def floors(ms: float, work: Work, rates: dict) -> dict:
    """The least time that a stage could take.

    Args:
        ms: What it takes, milliseconds.
        work: What it does.
        rates: What the machine can do.

    Returns:
        Milliseconds that its operations and its numbers take at least, and how many
        times the larger of them it takes.

    Example:
        >>> floors(3.0, Work(10**6, 0), {"gflops": 1.0, "gbytes_per_s": 1.0})
        {'flops_floor_ms': 1.0, 'bytes_floor_ms': 0.0, 'times_floor': 3.0}
    """
    flops = work.flops / rates["gflops"] / 1e6
    numbers = 4 * work.numbers / rates["gbytes_per_s"] / 1e6
    return {
        "flops_floor_ms": round(flops, 4),
        "bytes_floor_ms": round(numbers, 4),
        "times_floor": round(ms / max(flops, numbers), 1),
    }
