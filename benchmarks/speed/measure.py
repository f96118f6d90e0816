"""Two ways to compute one thing: checked to agree, then timed in turns, so that other load slows both."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from qkd_jax.errors import InputError

Call = Callable[[], Any]
"""What is timed; it returns when everything is computed."""
DEADLINE = "QKD_SPEED_DEADLINE"
"""Environment variable: Unix time after which no further round or peer begins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, or without a peer one figure."""

    what: str
    ours: str
    peer: str | None = None
    seconds: Sequence[float]
    """Ours, in each round."""
    peer_seconds: Sequence[float] = ()
    off: float | None = None
    """Largest difference between the two results, relative to the largest value."""
    note: str = ""
    at_least: float | None = None
    """Goal: this many times as fast as the peer."""
    at_most: float | None = None
    """Goal: this many seconds, without a peer."""

    @property
    def times_as_fast(self) -> tuple[float, float, float]:
        """The median over the rounds of the peer's time divided by ours, and its quartiles."""
        low, middle, high = np.percentile(np.array(self.peer_seconds) / np.array(self.seconds), [25, 50, 75])
        return float(middle), float(low), float(high)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.at_least is not None:
            return self.times_as_fast[0] >= self.at_least
        return None if self.at_most is None else float(np.median(self.seconds)) <= self.at_most


def late() -> bool:
    """Whether the deadline has passed, if there is one."""
    return time.time() > float(os.environ.get(DEADLINE, "inf"))


def in_turns(calls: Mapping[Any, Call], rounds: int, repeat: int = 1) -> dict[Any, list[float]]:
    """Wall-clock seconds of each of `calls` in each round, after one that doesn't count.

    With `repeat`, each is called this many times per round, and the mean counts.  After the deadline no
    further round begins, but there is at least one.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for index in range(rounds):
        if index and late():
            break
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(repeat):
                call()
            seconds[name].append((time.perf_counter() - begun) / repeat)
    return seconds


def agree(what: str, ours: Any, theirs: Any, within: float) -> float:
    """The largest difference of `theirs` from `ours`, relative to the largest value.

    Raises InputError if that is more than `within`: the times would be those of different things.
    """
    one, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if one.shape != other.shape:
        raise InputError(f"{what}: expected one shape, ours is {one.shape}, the peer's {other.shape}")
    off = float(np.abs(one - other).max() / np.abs(one).max())
    if not off <= within:
        raise InputError(f"{what}: expected the peer within {within:g} of ours, found it off by {off:.2g}")
    return off


def beside(
    what: str,
    seconds: Mapping[Any, Sequence[float]],
    off: Mapping[Any, float | None],
    goals: Mapping[Any, float] = {},
    note: Callable[[Sequence[float]], str] = lambda seconds: "",
) -> Iterator[Row]:
    """A row for each pair in `off`, ours and a peer; `goals` are multiples by peer, `note` tells of ours."""
    for (ours, peer), difference in off.items():
        mine, theirs = seconds[ours], seconds[peer] if peer else ()
        comparison: dict[str, Any] = {"ours": ours, "peer": peer, "seconds": mine, "peer_seconds": theirs}
        yield Row(what=what, off=difference, at_least=goals.get(peer), note=note(mine), **comparison)


def waited(step: Any, *args: Any) -> Any:
    """The result of a jitted `step`, once all of it is computed."""
    import jax

    return jax.block_until_ready(step(*args))


@cache
def arithmetic(dtype: str = "float32") -> float:
    """Operations per second of a product of square matrices, in float32 without TF32."""
    import jax
    import jax.numpy as jnp

    size = 4096 if jax.default_backend() == "gpu" else 1024
    ones = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))
    return 2 * size**3 / min(in_turns({"product": lambda: waited(product, ones, ones)}, 10)["product"])


@cache
def bandwidth() -> float:
    """Bytes per second of reading float32 numbers and writing as many."""
    import jax
    import jax.numpy as jnp

    size = 16 * (4096 if jax.default_backend() == "gpu" else 1024) ** 2
    zeros, more = jnp.zeros(size, jnp.float32), jax.jit(lambda x: x + 1)
    return 8 * size / min(in_turns({"more": lambda: waited(more, zeros)}, 10)["more"])
