"""What the fields of one view and scale learn from: faces, options, batches."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.learn.ccnf.samples import Augmentation, FaceBank, Samples, draw_samples
from jaxclnf.pytree import pytree_dataclass, static


@pytree_dataclass
class FieldOptions:
    """How the fields of one view and scale are learnt."""

    window_size: int = static(default=11)
    """Side of the response maps, odd."""
    support: int = static(default=11)
    """Side of the support regions, odd."""
    num_neurons: int = static(default=7)
    """Neurons of each landmark."""
    target_sigma: float = static(default=1.0)
    """Width of the peak that a response map should have, reference pixels."""
    batch_size: int = static(default=32)
    """Faces in a step."""
    num_epochs: int = static(default=6)
    """How often every face is seen, at most."""
    patience: int = static(default=3)
    """Epochs without progress on the held-out faces, on any landmark, after which to
    stop."""
    learning_rate: float = static(default=0.02)
    """Step size of Adam at the beginning; it falls to zero as a cosine."""
    decay: float = static(default=1e-5)
    """Weight of half the squared filters in the loss."""
    coupling_decay: float = static(default=1.0)
    """Weight of half the squared betas in the loss, against a likelihood per pixel.
    Likelihood alone (0) finds the betas of a known field, but on photographs couples
    the pixels so strongly that peaks are smoothed away and fits lose a fifth; 1 leaves
    little coupling."""
    augmentation: Augmentation = Augmentation()
    """How the samples are varied."""


@pytree_dataclass
class FieldTask:
    """The faces that the fields of one view and scale learn from."""

    bank: FaceBank
    """The faces."""
    faces: Int[Array, " t"]
    """Faces to learn from."""
    flipped: Bool[Array, " t"]
    """Which of them to mirror."""
    check_faces: Int[Array, " s"]
    """Held-out faces."""
    check_flipped: Bool[Array, " s"]
    """Which of them to mirror."""
    landmarks: Int[Array, " k"]
    """The landmarks whose fields to learn."""
    mirror: Int[Array, " n"]
    """The partner of every landmark on the other side of the face."""
    patch_scaling: Float[Array, ""]
    """Pixels per millimetre of the reference frame."""


# Drawing and learning are two programs: in one, XLA's CPU compiler would fuse the
# sampling of the pictures into the unfolding of the regions, 121 times the work.
@jax.jit
def learning_batch(
    key: Array, task: FieldTask, options: FieldOptions, index: Int[Array, " b"]
) -> Samples:
    """Samples to learn from.

    Args:
        key: Random key.
        task: The faces.
        options: How to learn.
        index: Which of the faces to learn from.

    Returns:
        The samples, varied as the options say.

    Example:
        >>> task, options = field_task()
        >>> samples = learning_batch(jax.random.key(0), task, options, jnp.arange(1))
        >>> samples.areas.shape
        (1, 2, 7, 7)
    """
    faces, flipped = task.faces[index], task.flipped[index]
    return _draw(key, task, options, faces, flipped, options.augmentation)


def check_batches(
    key: Array, task: FieldTask, options: FieldOptions
) -> Iterator[Samples]:
    """Samples of the held-out faces, always at the same places, in clean pictures.

    Args:
        key: Random key of the run.
        task: The faces.
        options: How to learn.

    Yields:
        Batches of one size.

    Raises:
        ValueError: There are no held-out faces.

    Example:
        >>> task, options = field_task()
        >>> [samples] = check_batches(jax.random.key(0), task, options)
        >>> samples.targets.shape
        (1, 2, 25)
    """
    count = task.check_faces.shape[0]
    if count == 0:
        raise ValueError("there are no held-out faces; expected at least one")
    size = min(options.batch_size, count)
    key = jax.random.fold_in(key, 2**31 - 1)
    for i, start in enumerate(range(0, count, size)):
        # Batches of one size compile once; the last one sees some faces twice.
        first = min(start, count - size)
        index = jnp.arange(first, first + size)
        yield _check_batch(jax.random.fold_in(key, i), task, options, index)


@jax.jit
def _check_batch(
    key: Array, task: FieldTask, options: FieldOptions, index: Int[Array, " b"]
) -> Samples:
    clean = dataclasses.replace(options.augmentation, blur=0.0, noise=0.0, gamma=0.0)
    faces, flipped = task.check_faces[index], task.check_flipped[index]
    return _draw(key, task, options, faces, flipped, clean)


def _draw(
    key: Array,
    task: FieldTask,
    options: FieldOptions,
    index: Int[Array, " b"],
    flipped: Bool[Array, " b"],
    augmentation: Augmentation,
) -> Samples:
    return draw_samples(
        key,
        task.bank,
        index,
        flipped,
        task.landmarks,
        task.mirror,
        patch_scaling=task.patch_scaling,
        window_size=options.window_size,
        support=options.support,
        target_sigma=options.target_sigma,
        augmentation=augmentation,
    )
