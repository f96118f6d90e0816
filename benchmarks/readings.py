"""What the paper leaves open, one change at a time, measured on validation: which default is best.

python -m benchmarks.readings --data DIR --out DIR [--units 64] [--epochs 12] [--only NAME …]

The base is preset `paper`'s distilled float student, of other units, taught by the committed logits of
the standard set's teacher.  Each change is a run of its own below DIR; what is done is skipped.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from pydantic.dataclasses import dataclass

from benchmarks import students
from benchmarks.standard import TEACHER_LOGITS, standard_config, taught_by
from benchmarks.text import markdown
from qkd_jax.commands.cli import override, run_command
from qkd_jax.config import LSTMConfig, RunConfig
from qkd_jax.config.fields import OFF
from qkd_jax.errors import InputError
from qkd_jax.nn import lstm, matmul
from qkd_jax.nn import lstm_cell as cell
from qkd_jax.run_folder.log import read_epochs
from qkd_jax.training.run import train

CHANGES: dict[str, list[str]] = {
    "base": [],
    "learning-rate-1e-3": ["--students.student.learning-rate", "1e-3"],
    "learning-rate-1e-2": ["--students.student.learning-rate", "1e-2"],
    "learning-rate-constant": ["--train.schedule", "constant"],
    "batch-64": ["--train.batch-size", "64"],
    "labels-alone": ["--students.student.no-distill"],
    "alpha-0.7": ["--distill.alpha", "0.7"],
    "alpha-0.9": ["--distill.alpha", "0.9"],
    "temperature-1": ["--distill.temperature", "1"],
    "temperature-4": ["--distill.temperature", "4"],
    "form-paper": ["--distill.form", "paper"],
    "weight-1": ["--distill.positive-weight", "1.0"],
    "weight-positives-over-negatives": ["--distill.positive-weight", "positives/negatives"],
    "mean-over-time": ["--students.student.pooling", "mean"],
    "4-bit": [
        f"--students.student.quant.{part}={bits}"
        for part, bits in (("weights", 4), ("activations", 4), ("gates", 4), ("cell", 16))
    ],
}
CHANGES["4-bit-split"] = [*CHANGES["4-bit"], "--students.student.quant.ranges", "split"]
_GO_ON = [*CHANGES["4-bit"], "--students.student.start", "{runs}/base/student"]
CHANGES |= {
    "4-bit-from-float": [*_GO_ON, "--students.student.learning-rate", "1e-3"],
    "4-bit-from-float-3e-3": _GO_ON,
    "4-bit-from-float-3e-4": [*_GO_ON, "--students.student.learning-rate", "3e-4"],
    "4-bit-from-float-chain": [*_GO_ON, "--students.student.learning-rate", "1e-3"],
}
CHAIN = "4-bit-from-float-chain"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to train on, how long, and which changes."""

    data: str = ""
    """Folder of the recordings, with their manifest: the standard set."""
    out: str = "runs/readings"
    """Folder of the runs."""
    units: int = 64
    """Units of the student; the paper's main one has 256, and takes six times as long."""
    epochs: int = 12
    """Passes over the training set for each."""
    only: tuple[str, ...] = tuple(CHANGES)
    """Which changes, in this order."""


def changed(base: RunConfig, name: str) -> Config:
    """`base` with the change `name`, as a run of that name."""
    if name not in CHANGES:
        raise InputError(f"--only: expected some of {', '.join(CHANGES)}, got {name!r}")
    arguments = [argument.format(runs=base.runs) for argument in CHANGES[name]]
    return dataclasses.replace(override(base, arguments), name=name)


def chain_quant(x: jax.Array, bits: int, *, axis: int | tuple[int, ...] | None = -1) -> jax.Array:
    """`fake_quant` with the gradient that eq. 3 has by the chain rule, identity through the rounding alone.

    With scale and offset from minimum and maximum: beside the identity it gives the extremes of a vector
    their share of the rounding errors of all its elements.
    """
    if bits == OFF:
        return x
    low = x.min(axis=axis, keepdims=True)
    spread = x.max(axis=axis, keepdims=True) - low
    scale = jnp.where(spread > 0, spread, 1) / (2**bits - 1)
    exact = (x - low) / scale
    return scale * (exact + jax.lax.stop_gradient(jnp.round(exact) - exact)) + low


@contextlib.contextmanager
def chain_gradient() -> Iterator[None]:
    """Within it the LSTM has `chain_quant`'s gradient, by JAX's own differentiation of the scan.

    A run's settings don't know of it: one that was stopped goes on with it only by this command.
    """

    def layer_scan(*arguments):
        return lstm._run(*arguments)[:2]

    with (
        mock.patch.object(cell, "fake_quant", chain_quant),
        mock.patch.object(matmul, "fake_quant", chain_quant),
        mock.patch.object(lstm, "_layer_scan", layer_scan),
    ):
        yield


def best_epoch(folder: Path) -> dict[str, float]:
    """`epoch`, `auc` and `eer` of the epoch of the run in `folder` that was best on validation."""
    best = students.best_epoch(read_epochs(folder / "student"))
    return {"epoch": best["epoch"], **best["valid"]}


def table(rows: dict[str, dict[str, float]]) -> str:
    """`best_epoch` of each change as Markdown."""
    found = [
        [name, f"{row['auc']:.2f}", f"{row['eer']:.2f}", f"{row['epoch']:.0f}"] for name, row in rows.items()
    ]
    return markdown(["change", "validation AUC", "EER", "epoch"], found) + "\n"


def main(arguments: list[str]) -> None:
    """Train what is asked for, then print the table."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.readings", description=__doc__)
    base = taught_by(standard_config(settings.data, settings.out), TEACHER_LOGITS)
    base = dataclasses.replace(
        base,
        students={"student": LSTMConfig(units=settings.units)},
        train=dataclasses.replace(base.train, student_epochs=settings.epochs),
    )
    rows = {}
    for name in settings.only:
        with chain_gradient() if name == CHAIN else contextlib.nullcontext():
            rows[name] = best_epoch(train(changed(base, name)))
        print(table(rows), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
