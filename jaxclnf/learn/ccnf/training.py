"""Learning fields by gradient: all landmarks of one view and scale at once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.learn.ccnf.field import FieldParams, log_likelihood
from jaxclnf.learn.ccnf.neighbours import NUM_NEIGHBOURS, neighbour_matrices
from jaxclnf.learn.ccnf.samples import Samples
from jaxclnf.learn.ccnf.tasks import FieldOptions, FieldTask, learning_batch
from jaxclnf.learn.ccnf.validation import confidences as confidences
from jaxclnf.learn.ccnf.validation import held_out_loss as held_out_loss
from jaxclnf.pytree import pytree_dataclass


@pytree_dataclass
class Learning:
    """Where learning stands after an epoch: enough to go on from."""

    params: FieldParams
    """The fields now."""
    moments: optax.OptState
    """What Adam remembers."""
    best: FieldParams
    """Each landmark's field when it did best on the held-out faces."""
    best_loss: Float[Array, " k"]
    """Negative log-likelihood per pixel there."""
    loss: Float[Array, " k"]
    """The same now."""
    epoch: Int[Array, ""]
    """Epochs done."""
    stale: Int[Array, ""]
    """Epochs since any landmark did better."""


def initial_fields(
    key: Array, num_landmarks: int, options: FieldOptions, dtype: jnp.dtype
) -> FieldParams:
    """Fields with small random filters, to start from.

    Args:
        key: Random key.
        num_landmarks: How many fields.
        options: Their sizes.
        dtype: Floating type.

    Returns:
        The fields.

    Example:
        >>> key = jax.random.key(0)
        >>> fields = initial_fields(key, 5, FieldOptions(), jnp.dtype("f4"))
        >>> fields.filters.shape, fields.log_beta.shape
        ((5, 7, 11, 11), (5, 3))
    """
    n, k, p = num_landmarks, options.num_neurons, options.support
    return FieldParams(
        filters=0.5 * jax.random.normal(key, (n, k, p, p), dtype),
        bias=jnp.full((n, k), -2, dtype),
        log_alpha=jnp.zeros((n, k), dtype),
        log_beta=jnp.zeros((n, NUM_NEIGHBOURS), dtype),
    )


def begin(key: Array, task: FieldTask, options: FieldOptions) -> Learning:
    """The state before the first epoch.

    Args:
        key: Random key; the same one as for `run_epoch`.
        task: The faces.
        options: How to learn.

    Returns:
        Random fields, not tried yet.

    Example:
        >>> task, options = field_task()
        >>> key = jax.random.key(0)
        >>> state = begin(key, task, options)
        >>> int(state.epoch), state.best_loss.tolist()
        (0, [inf, inf])
    """
    dtype = task.bank.landmarks.dtype
    count = task.landmarks.shape[0]
    params = initial_fields(jax.random.fold_in(key, 0), count, options, dtype)
    worst = jnp.full(count, jnp.inf, dtype)
    zero = jnp.zeros((), jnp.int32)
    return Learning(
        params=params,
        moments=initial_moments(params),
        best=params,
        best_loss=worst,
        loss=worst,
        epoch=zero,
        stale=zero,
    )


def run_epoch(
    key: Array, task: FieldTask, options: FieldOptions, state: Learning
) -> Learning:
    """Sees every face once, less an incomplete batch; then tries the held-out ones.

    Args:
        key: Random key of the whole run; each epoch derives its own, so that a resumed
            run is the run itself.
        task: The faces.
        options: How to learn.
        state: The state before.

    Returns:
        The state after.

    Raises:
        ValueError: There are no faces to learn from, or none held out.

    Example:
        >>> task, options = field_task()
        >>> key = jax.random.key(0)
        >>> state = run_epoch(key, task, options, begin(key, task, options))
        >>> int(state.epoch), bool(jnp.all(jnp.isfinite(state.best_loss)))
        (1, True)
    """
    epoch_key = jax.random.fold_in(key, state.epoch + 1)
    order_key, sample_key = jax.random.split(epoch_key)
    count = task.faces.shape[0]
    if count == 0:
        raise ValueError("there are no faces to learn from; expected at least one")
    batches = max(1, count // options.batch_size)
    num_steps = batches * options.num_epochs
    order = np.asarray(jax.random.permutation(order_key, count))
    params, moments = state.params, state.moments
    size = min(options.batch_size, count)
    for step in range(batches):
        index = jnp.asarray(order[step * size : (step + 1) * size])
        samples = learning_batch(
            jax.random.fold_in(sample_key, step), task, options, index
        )
        params, moments = learn_step(options, num_steps, params, moments, samples)
    loss = held_out_loss(key, task, options, params)
    better = loss < state.best_loss
    best = jax.tree.map(
        lambda new, old: jnp.where(_over(better, new), new, old), params, state.best
    )
    # A landmark without any trustworthy label never gets better and need not wait.
    return Learning(
        params=params,
        moments=moments,
        best=best,
        best_loss=jnp.where(better, loss, state.best_loss),
        loss=loss,
        epoch=state.epoch + 1,
        stale=jnp.where(jnp.any(better), 0, state.stale + 1),
    )


def learn_fields(
    key: Array,
    task: FieldTask,
    options: FieldOptions,
    *,
    state: Learning | None = None,
    on_epoch: Callable[[Learning], None] | None = None,
) -> Learning:
    """Learns the fields of one view and scale.

    Args:
        key: Random key; results are the same for the same key.
        task: The faces.
        options: How to learn.
        state: Where an interrupted run stood, if it goes on.
        on_epoch: Called with the state after every epoch: for progress, checkpoints.

    Returns:
        The last state; its `best` fields are the result.

    References:
        Baltrusaitis, Robinson, Morency 2013, section 4.1, with Adam on random samples
        in the place of BFGS on fixed ones.

    Example:
        >>> task, options = field_task()
        >>> key = jax.random.key(0)
        >>> state = learn_fields(key, task, options)
        >>> int(state.epoch), state.best.filters.shape
        (2, (2, 1, 3, 3))
    """
    state = begin(key, task, options) if state is None else state
    while int(state.epoch) < options.num_epochs and int(state.stale) < options.patience:
        state = run_epoch(key, task, options, state)
        if on_epoch is not None:
            on_epoch(state)
    return state


def _over(mask: Bool[Array, " k"], like: Array) -> Bool[Array, " k *_"]:
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))


@partial(jax.jit, static_argnames="num_steps")
def learn_step(
    options: FieldOptions,
    num_steps: int,
    params: FieldParams,
    moments: optax.OptState,
    samples: Samples,
) -> tuple[FieldParams, optax.OptState]:
    """One step of Adam towards fields that explain some samples better.

    Args:
        options: How to learn.
        num_steps: Steps of the whole run, over which the step size falls.
        params: The fields.
        moments: What Adam remembers: `initial_moments`, or from the step before.
        samples: What to learn from.

    Returns:
        The fields and what Adam remembers after the step.

    Example:
        >>> options = FieldOptions(window_size=5, support=3, num_neurons=1)
        >>> fields = initial_fields(jax.random.key(0), 1, options, jnp.dtype("f4"))
        >>> samples = Samples(areas=jnp.ones((1, 1, 7, 7), jnp.float32),
        ...     targets=jnp.ones((1, 1, 25), jnp.float32),
        ...     weights=jnp.ones((1, 1), jnp.float32))
        >>> moved, _ = learn_step(
        ...     options, 10, fields, initial_moments(fields), samples)
        >>> moved.bias > fields.bias  # the maps should be larger
        Array([[ True]], dtype=bool)
    """
    neighbours = jnp.asarray(
        neighbour_matrices(options.window_size), samples.areas.dtype
    )

    def loss(params: FieldParams) -> Float[Array, ""]:
        # A sum over landmarks: what one learns does not depend on the others.
        logs = log_likelihood(params, samples.areas, samples.targets, neighbours)
        data = -jnp.sum(samples.weights * logs) / samples.areas.shape[0]
        return (
            data
            + 0.5 * options.decay * jnp.sum(params.filters**2)
            + 0.5 * options.coupling_decay * jnp.sum(jnp.exp(2 * params.log_beta))
        )

    gradient = jax.grad(loss)(params)
    adam = _adam(options.learning_rate, num_steps)
    # optax mixes float and integer types.
    with jax.numpy_dtype_promotion("standard"):
        updates, moments = adam.update(gradient, moments)
    return jax.tree.map(jnp.add, params, updates), moments


def initial_moments(params: FieldParams) -> optax.OptState:
    """What Adam remembers before the first step: nothing.

    Args:
        params: The fields.

    Returns:
        Moments of zero.

    Example:
        >>> key = jax.random.key(0)
        >>> fields = initial_fields(key, 5, FieldOptions(), jnp.dtype("f4"))
        >>> any(jnp.any(x != 0) for x in jax.tree.leaves(initial_moments(fields)))
        False
    """
    return _adam(0.0, 1).init(params)


def _adam(learning_rate: float, num_steps: int) -> Any:
    # optax's types know no dataclasses, hence `Any`.
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps, alpha=0.01)
    return optax.adam(schedule, b1=0.9, b2=0.99)
