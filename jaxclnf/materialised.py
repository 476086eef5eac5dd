"""Values that are computed once, where the compiler would compute them many times."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def materialised(values: Float[Array, "*k w"]) -> Float[Array, "*k w"]:
    """The same values, computed once.

    Left alone, XLA's CPU compiler fuses what makes an array into each place that reads
    it: it samples each pixel for every support region that it lies in, or rounds a
    position for each of its four neighbours. It removes `optimization_barrier` before
    it fuses (seen in 0.10.1). A matrix product it never fuses with what makes its
    operands, so here is one with the identity, which is exact for finite values.

    Args:
        values: Any array with a short last axis.

    Returns:
        The values. A row with a NaN becomes NaN.

    Example:
        >>> materialised(jnp.asarray([[0.1, 1e9]])).tolist()
        [[0.1, 1000000000.0]]
    """
    *leading, width = values.shape
    identity = np.eye(width, dtype=values.dtype)
    product = jnp.matmul(values.reshape(-1, width), identity, precision="highest")
    return product.reshape(*leading, width)


def materialised_integers(
    values: Int[Array, "k w"], dtype: jnp.dtype
) -> Int[Array, "k w"]:
    """Whole numbers, computed once; see `materialised`.

    Args:
        values: Of type int32.
        dtype: A floating type for the way.

    Returns:
        The values.

    Example:
        >>> numbers = jnp.asarray([[-1, 2**31 - 1]], jnp.int32)
        >>> materialised_integers(numbers, jnp.dtype(jnp.float32)).tolist()
        [[-1, 2147483647]]
    """
    # In two parts, which float32 holds exactly.
    high, low = values >> 16, values & 0xFFFF
    halves = materialised(jnp.concatenate([high, low]).astype(dtype))
    high, low = halves.astype(jnp.int32).reshape(2, *values.shape)
    return (high << 16) + low
