"""Checkpoints: the two newest and the best; the only file that imports Orbax."""

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from qkd_jax.errors import InputError, first_line
from qkd_jax.evaluation.metrics import best_by
from qkd_jax.run_folder.state import TrainState
from qkd_jax.system.devices import any_process, is_first, on_each, wait_for_all

_OVERHEAD = 200_000  # bytes of a checkpoint besides its arrays, on a file system with 4 KiB blocks


@contextlib.contextmanager
def open_checkpoints(folder: Path, *, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in `folder`: the last two, and the best (`best_by`).

    Before writing, partial checkpoints of a killed run are removed, and damaged ones are set aside;
    `read_only` changes nothing, since the run may be training.  Raises InputError.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # failures are raised as well
    best = BestN(get_metric_fn=best_by, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
        best_fn=best_by,
        # The next step reuses the state's buffers, so it must be on disk before that.
        enable_async_checkpointing=False,
        read_only=read_only,
    )
    if not read_only:
        _set_aside_without_figures(folder)
    with _named(folder):
        manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )
        manager.best_step()  # reads the metrics of all
    try:
        yield manager
    finally:
        manager.close()


def save(manager: ocp.CheckpointManager, state: TrainState, metrics: dict[str, float] | None) -> None:
    """Save `state` under its step, with its validation metrics; None within an epoch.

    Raises InputError if it can't be written; earlier checkpoints stay.
    """
    step = int(state.step)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
    try:
        # Orbax would fail too, in many threads, each with a long report.
        free = shutil.disk_usage(manager.directory).free
        if any_process(free < needed):
            raise OSError(f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")
        with contextlib.redirect_stderr(io.StringIO()):
            manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{manager.directory}/{step}: could not be written: {str(error).split(': ')[-1]}; "
            f"step {manager.latest_step() or 0} is kept, and the same command resumes from there"
        ) from None


class _Damaged(InputError):
    """A checkpoint that can't be read."""


def restore_last(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The state of the last readable step, or None if there is no checkpoint; raises InputError as `restore`.

    Damaged checkpoints are set aside and reported; if all are damaged, that is an InputError, since the model
    must train from scratch.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return restore(manager, step, like)
        except _Damaged as error:
            _set_aside(Path(manager.directory, str(step)), error)
            manager.reload()
    if steps:
        raise InputError(
            f"{manager.directory}: expected a readable checkpoint, found none; "
            "the same command trains this model from scratch"
        )
    return None


def _set_aside_without_figures(folder: Path) -> None:
    """Set aside checkpoints with unreadable validation figures, with which Orbax can't start."""
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            with _named(path.parents[1]):
                json.loads(path.read_bytes())
        except _Damaged as error:
            _set_aside(path.parents[1], error)


def _set_aside(damaged: Path, error: object) -> None:
    aside = damaged.parent.with_name(f"damaged-{damaged.name}")
    wait_for_all(damaged)
    if is_first():
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)
    wait_for_all(aside)
    print(f"{str(error).partition('; ')[0]}; moved to {aside}", flush=True)


def restore(manager: ocp.CheckpointManager, step: int, like: TrainState) -> TrainState:
    """The state of `step`, with arrays or shapes as in `like`.

    Raises InputError if it belongs to another model or is damaged.
    """
    where = f"{manager.directory}/{step}"
    with _named(where):
        kept, expected = _described(manager.item_metadata(step)), _described(like)
    # Orbax would fail too, in many threads, each with a long report.
    for name in expected | kept:
        if kept.get(name) != expected.get(name):
            raise InputError(
                f"{where}: expected a checkpoint of this model, with {name} {expected.get(name)}, "
                f"found {kept.get(name)}"
            )
    # It may have been saved on another number of devices.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_each()), like)
    with _named(where), contextlib.redirect_stderr(io.StringIO()):
        return manager.restore(step, args=ocp.args.StandardRestore(shapes))


def best_model(folder: Path, like: TrainState) -> Any:
    """The variables, for the model's `apply`, of the best checkpoint in `folder`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected checkpoints, found none; qkd-jax train resumes the run")
    with open_checkpoints(folder, read_only=True) as manager:
        step = manager.best_step()
        if step is None:
            raise InputError(
                f"{folder}: expected a finished epoch, or in a final run a finished model, found none; "
                "qkd-jax train resumes the run"
            )
        return restore(manager, step, like).model


def _described(tree: Any) -> dict[str, str]:
    """Type and shape of each array by name."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{jnp.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in leaves
    }


@contextlib.contextmanager
def _named(where: Path | str) -> Iterator[None]:
    """Turn Orbax's errors into InputErrors that name the place."""
    try:
        yield
    except Exception as error:  # damaged files may raise anything
        reason = first_line(error)
        if isinstance(error, MemoryError | RuntimeError):  # which may be temporary
            raise InputError(f"{where}: could not be read: {reason}") from None
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            message = f"{error.filename or where}: could not be read: {error.strerror or reason}"
            raise InputError(message) from None
        raise _Damaged(
            f"{where}: could not be read as a checkpoint: {reason}; if it is damaged, delete it, and the "
            "run resumes from the one before, or starts again"
        ) from None
