"""An update of the students of preset small, by `qkd-jax train` and on one JAX device, in processes.

    python -m benchmarks.speed.student NETWORK cores|device UPDATES

prints the seconds of each update after the first.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.common import ROOT
from benchmarks.speed.measure import Row, late
from qkd_jax.errors import InputError

NETWORKS = {
    "float": "distilled",
    "8 bits, integer-only": "distilled-8",
    "4 bits, integer-only": "distilled-4",
}
TWICE = 2.0
"""Goal: as many times as fast as one device whose freed memory goes back to the system."""
_BATCH, _UPDATES = 32, 10


def rows(rounds: int) -> Iterator[Row]:
    """Each of `NETWORKS`, in turns with one device."""
    for title, name in NETWORKS.items():
        seconds: dict[str, list[float]] = {"cores": [], "device": []}
        for index in range(rounds):
            if index and late():
                break
            for how, times in seconds.items():
                times.append(_seconds(name, how))
        rate = _BATCH / float(np.median(seconds["cores"]))
        yield Row(
            what=f"{_BATCH} x 998 x 64, {title}",
            ours="qkd-jax train: a device per core, freed memory kept",
            peer="one device",
            seconds=seconds["cores"],
            peer_seconds=seconds["device"],
            at_least=TWICE,
            note=f"{rate:.0f} clips/s",
        )


def _seconds(name: str, how: str) -> float:
    """The median seconds of an update, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.student", name, how, str(_UPDATES)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{name}: ended with status {done.returncode}")
    return float(np.median(json.loads(done.stdout)))


def times(name: str, updates: int) -> list[float]:
    """Seconds of each of `updates` updates of student `name`, after the first, on noise."""
    import jax

    from qkd_jax.commands.cli import load_preset
    from qkd_jax.config import is_integer
    from qkd_jax.distill.objectives import weighted_bce
    from qkd_jax.models.build import build_model
    from qkd_jax.models.lstm_integer import calibrate
    from qkd_jax.run_folder.state import init_state, make_optimizer
    from qkd_jax.system.devices import everywhere, spread
    from qkd_jax.training.step import make_train_step

    config, noise = load_preset("small"), np.random.default_rng(0)
    network: Any = config.models[name].network
    features = noise.normal(-5, 2, (_BATCH, config.frames, config.features.n_mels)).astype(np.float32)
    labels = (noise.random((_BATCH, 3)) < 0.25).astype(np.float32)
    norm = np.full(features.shape[-1], -5, np.float32), np.full(features.shape[-1], 2, np.float32)
    model, optimizer = build_model(network, 3), make_optimizer(config.recipe, 1e-3, 1000)
    state = init_state(model, optimizer, features.shape[1:], norm, 0)
    if is_integer(network):
        exponents = calibrate(network, state.model, [features])
        state = dataclasses.replace(state, variables=state.variables | {"exponents": exponents})
    step = make_train_step(model, optimizer, lambda logits, batch: weighted_bce(logits, batch["labels"]))
    state, batch, seconds = everywhere(state), spread({"features": features, "labels": labels}), []
    for _ in range(updates + 1):
        begun = time.perf_counter()
        state, _ = step(state, batch)
        jax.block_until_ready(state.params)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


if __name__ == "__main__":
    _, wanted, how, count = sys.argv
    if how == "cores":
        from qkd_jax.system.devices import use_all_cores

        use_all_cores(_BATCH)
    print(json.dumps(times(wanted, int(count))))
