"""Checkpoints: the newest and the best; the one file that knows Orbax."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from qkd_jax.config import InputError
from qkd_jax.train.state import TrainState


@contextlib.contextmanager
def open_checkpoints(folder: Path) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in `folder`: the last, and the best by the metric `auc`."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(
            [LatestN(1), BestN(get_metric_fn=lambda metrics: metrics["auc"], n=1)]
        ),
        best_fn=lambda metrics: metrics["auc"],
        # A state is donated to the next step: it must be on disk before that.
        enable_async_checkpointing=False,
    )
    manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        yield manager
    finally:
        manager.close()


def save(manager: ocp.CheckpointManager, state: TrainState, metrics: dict[str, float]) -> None:
    """Keep `state` under its own step, with the validation metrics it reached."""
    manager.save(int(state.step), args=ocp.args.StandardSave(state), metrics=metrics)


def restore(manager: ocp.CheckpointManager, step: int, like: TrainState) -> TrainState:
    """The state of `step`; `like` (arrays or shapes) says what is expected to be in it."""
    shapes: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(shapes))
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{manager.directory}/{step}: expected a checkpoint of this model: {reason}"
        ) from None


def best_model(folder: Path, like: TrainState) -> Any:
    """The variables, for the model's `apply`, of the best checkpoint in `folder`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected checkpoints, found none; train.py goes on with the run")
    with open_checkpoints(folder) as manager:
        step = manager.best_step()
        if step is None:
            raise InputError(
                f"{folder}: expected a finished epoch, found none; train.py goes on with the run"
            )
        return restore(manager, step, like).model
