"""What the device can do at most, measured: how near a step comes to it."""

from functools import cache

import jax
import jax.numpy as jnp

from benchmarks.speed.turns import in_turns

SIZE = 4096 if jax.default_backend() == "gpu" else 1024


@cache
def arithmetic(dtype: str = "float32", size: int = SIZE) -> float:
    """Operations a second of one product of square matrices, in float32 without TF32."""
    ones = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))
    seconds = in_turns({"product": lambda: jax.block_until_ready(product(ones, ones))}, 10)["product"]
    return 2 * size**3 / min(seconds)


@cache
def bandwidth(size: int = 16 * SIZE**2) -> float:
    """Bytes a second of reading so many numbers of float32 and writing them."""
    zeros, more = jnp.zeros(size, jnp.float32), jax.jit(lambda x: x + 1)
    seconds = in_turns({"more": lambda: jax.block_until_ready(more(zeros))}, 10)["more"]
    return 8 * size / min(seconds)


def shares(operations: float, moved: float, seconds: float) -> str:
    """What share of both a step reaches that takes `seconds` for so many operations and bytes."""
    done, carried = operations / seconds / arithmetic(), moved / seconds / bandwidth()
    return f"{done:.0%} of the device's arithmetic, {carried:.0%} of its bandwidth"


def lstm_work(batch: int, steps: int, inputs: int, units: int) -> tuple[float, float]:
    """Operations of the products of a train step, forward, back and for the weights; bytes that it must move.

    Inputs are read twice, h is written and read, and so are the six slopes of each unit.
    """
    operations = 2 * batch * steps * 4 * units * (2 * (inputs + units) + units)
    return operations, 4 * batch * steps * (2 * inputs + 2 * units + 12 * units)
