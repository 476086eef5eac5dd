"""How well fields do on faces that they have not learnt from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.learn.ccnf.field import FieldParams, field_means, log_likelihood
from jaxclnf.learn.ccnf.neighbours import neighbour_matrices
from jaxclnf.learn.ccnf.samples import Samples
from jaxclnf.learn.ccnf.tasks import FieldOptions, FieldTask, check_batches


def held_out_loss(
    key: Array, task: FieldTask, options: FieldOptions, params: FieldParams
) -> Float[Array, " k"]:
    """How badly fields explain the held-out faces, always the same samples of them.

    Args:
        key: Random key of the run.
        task: The faces.
        options: How the fields are learnt.
        params: The fields.

    Returns:
        Negative log-likelihood per pixel of each landmark, weighted as in training;
        infinite for a landmark without a trustworthy label.

    Example:
        >>> task, options = field_task()
        >>> key = jax.random.key(0)
        >>> from jaxclnf.learn.ccnf.training import initial_fields
        >>> fields = initial_fields(key, 2, options, jnp.dtype("f8"))
        >>> held_out_loss(key, task, options, fields).shape
        (2,)
    """
    totals, weights = 0.0, 0.0
    for samples in check_batches(key, task, options):
        total, weight = _chunk_loss(options, params, samples)
        totals, weights = totals + total, weights + weight
    return jnp.where(weights > 0, totals / jnp.where(weights > 0, weights, 1), jnp.inf)


def confidences(
    key: Array, task: FieldTask, options: FieldOptions, params: FieldParams
) -> Float[Array, " k"]:
    """How far each expert is to be trusted: what it says against what it should.

    Args:
        key: Random key of the run.
        task: The faces.
        options: How the fields were learnt.
        params: The fields.

    Returns:
        Correlation between response maps and targets over the held-out samples, 0 to 1.

    Example:
        >>> task, options = field_task()
        >>> key = jax.random.key(0)
        >>> from jaxclnf.learn.ccnf.training import initial_fields
        >>> fields = initial_fields(key, 2, options, jnp.dtype("f8"))
        >>> trust = confidences(key, task, options, fields)
        >>> bool(jnp.all((trust >= 0) & (trust <= 1)))
        True
    """
    total = 0.0
    for samples in check_batches(key, task, options):
        total = total + _chunk_moments(options, params, samples)
    weight, x, y, xx, yy, xy = jnp.moveaxis(jnp.asarray(total), -1, 0)
    weight = jnp.where(weight > 0, weight, 1)
    x, y, xx, yy, xy = (m / weight for m in (x, y, xx, yy, xy))
    spread = jnp.sqrt((xx - x**2) * (yy - y**2))
    correlation = (xy - x * y) / jnp.where(spread > 0, spread, 1)
    return jnp.clip(jnp.where(spread > 0, correlation, 0), 0, 1)


@jax.jit
def _chunk_loss(
    options: FieldOptions, params: FieldParams, samples: Samples
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    neighbours = jnp.asarray(
        neighbour_matrices(options.window_size), samples.areas.dtype
    )
    logs = log_likelihood(params, samples.areas, samples.targets, neighbours)
    return -jnp.sum(samples.weights * logs, axis=0), jnp.sum(samples.weights, axis=0)


@jax.jit
def _chunk_moments(
    options: FieldOptions, params: FieldParams, samples: Samples
) -> Float[Array, "k 6"]:
    neighbours = jnp.asarray(
        neighbour_matrices(options.window_size), samples.areas.dtype
    )
    x = field_means(params, samples.areas, neighbours)
    x = x - jnp.minimum(x.min(axis=2, keepdims=True), 0)
    y = samples.targets
    moments = jnp.stack([jnp.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)
    return jnp.einsum("fn,fnum->nm", samples.weights, moments, precision="highest")
