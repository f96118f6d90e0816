"""Two ways to compute one thing: checked to agree, then timed in turns, so that a busy machine slows both."""

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.errors import InputError

Call = Callable[[], Any]
"""What is timed; it returns when all is computed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, or without a peer one figure."""

    what: str
    ours: str
    peer: str | None = None
    seconds: Sequence[float]
    """Ours, of each round."""
    peer_seconds: Sequence[float] = ()
    off: float | None = None
    """Largest difference between what the two compute, as a share of the largest value."""
    note: str = ""
    at_least: float | None = None
    """Goal: so many times as fast as the peer."""
    at_most: float | None = None
    """Goal: so many seconds, without a peer."""

    @property
    def times_as_fast(self) -> tuple[float, float, float]:
        """The median over the rounds of the peer's time by ours, and its quartiles."""
        low, middle, high = np.percentile(np.array(self.peer_seconds) / np.array(self.seconds), [25, 50, 75])
        return float(middle), float(low), float(high)

    @property
    def met(self) -> bool | None:
        """Whether the goal, if there is one, is."""
        if self.at_least is not None:
            return self.times_as_fast[0] >= self.at_least
        return None if self.at_most is None else float(np.median(self.seconds)) <= self.at_most


def in_turns(calls: Mapping[str, Call], rounds: int, repeat: int = 1) -> dict[str, list[float]]:
    """Seconds on the clock of each of `calls` in each round, after one that doesn't count.

    With `repeat`, each is called so often in a round, and has the mean.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(repeat):
                call()
            found[name].append((time.perf_counter() - begun) / repeat)
    return found


def agree(what: str, ours: Any, theirs: Any, within: float) -> float:
    """How far `theirs` is off `ours`, as a share of the largest value.

    Raises InputError if that is more than `within`: what follows would compare different things.
    """
    one, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if one.shape != other.shape:
        raise InputError(f"{what}: expected one shape, ours is {one.shape}, the peer's {other.shape}")
    off = float(np.abs(one - other).max() / np.abs(one).max())
    if not off <= within:
        raise InputError(f"{what}: expected the peer within {within:g} of ours, found it off by {off:.2g}")
    return off


def versions(*packages: str) -> str:
    """The versions of `packages` that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def processor() -> str:
    """What this process may compute on, in words."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    name, info = platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        names = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(names, f": {name}").partition(": ")[2]
    return f"{name}, {cores} core{'s' * (cores != 1)}"
