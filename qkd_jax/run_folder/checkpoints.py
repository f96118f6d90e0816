"""Checkpoints: the two newest and the best; the one file that knows Orbax."""

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
from qkd_jax.run_folder.state import TrainState
from qkd_jax.system.devices import any_process, is_first, on_each, wait_for_all

_OVERHEAD = 200_000  # bytes of a checkpoint beside the arrays, on a file system of 4 KiB blocks


@contextlib.contextmanager
def open_checkpoints(folder: Path, *, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in `folder`: the last two, and the best by the metric `psds`, or
    without that `auc`; raises InputError.

    To write, what a killed run left half-written is cleared away first, and what is damaged set aside;
    `read_only` leaves a run that is training alone.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is raised as well
    best = BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
        best_fn=_score,
        # A state is donated to the next step: it must be on disk before that.
        enable_async_checkpointing=False,
        read_only=read_only,
    )
    if not read_only:
        _set_aside_without_figures(folder)
    with _named(folder):
        manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )
        manager.best_step()  # reads what they all reached
    try:
        yield manager
    finally:
        manager.close()


def _score(metrics: dict[str, float]) -> float:
    return metrics["psds"] if "psds" in metrics else metrics["auc"]


def save(manager: ocp.CheckpointManager, state: TrainState, metrics: dict[str, float] | None) -> None:
    """Keep `state` under its own step, with the validation metrics it reached; None within an epoch.

    Raises InputError if it can't be written; what was kept before stands.
    """
    step = int(state.step)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
    try:
        # Orbax finds out too, in many threads, each with much to say.
        free = shutil.disk_usage(manager.directory).free
        if any_process(free < needed):
            raise OSError(f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")
        with contextlib.redirect_stderr(io.StringIO()):
            manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{manager.directory}/{step}: could not be written: {str(error).split(': ')[-1]}; "
            f"step {manager.latest_step() or 0} stands, and the same command goes on from there"
        ) from None


class _Damaged(InputError):
    """A checkpoint that can't be read."""


def restore_last(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The state of the last step that can be read, None without one; raises InputError as `restore` does.

    What is damaged is set aside, and said; if all are, that is raised, for the model has to begin as new.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return restore(manager, step, like)
        except _Damaged as error:
            _set_aside(Path(manager.directory, str(step)), error)
            manager.reload()
    if steps:
        raise InputError(f"{manager.directory}: none could be read; the same command trains this model anew")
    return None


def _set_aside_without_figures(folder: Path) -> None:
    """Set aside what Orbax can't begin with: checkpoints whose validation figures can't be read."""
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
    """The state of `step`; `like` (arrays or shapes) says what is expected to be in it.

    Raises InputError if it is another model's, or damaged.
    """
    where = f"{manager.directory}/{step}"
    with _named(where):
        kept, expected = _described(manager.item_metadata(step)), _described(like)
    # Orbax finds out too, in many threads, each with much to say.
    for name in expected | kept:
        if kept.get(name) != expected.get(name):
            raise InputError(
                f"{where}: expected a checkpoint of this model, with {name} {expected.get(name)}, "
                f"found {kept.get(name)}"
            )
    # However many devices it was saved on.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_each()), like)
    with _named(where), contextlib.redirect_stderr(io.StringIO()):
        return manager.restore(step, args=ocp.args.StandardRestore(shapes))


def best_model(folder: Path, like: TrainState) -> Any:
    """The variables, for the model's `apply`, of the best checkpoint in `folder`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected checkpoints, found none; train.py goes on with the run")
    with open_checkpoints(folder, read_only=True) as manager:
        step = manager.best_step()
        if step is None:
            raise InputError(
                f"{folder}: expected a finished epoch, found none; train.py goes on with the run"
            )
        return restore(manager, step, like).model


def _described(tree: Any) -> dict[str, str]:
    """Type and shape of each array, by its name."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{jnp.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in leaves
    }


@contextlib.contextmanager
def _named(where: Path | str) -> Iterator[None]:
    """Says where it is when Orbax meets what it can't read."""
    try:
        yield
    except Exception as error:  # what is damaged raises what it likes
        reason = first_line(error)
        if isinstance(error, MemoryError | RuntimeError):  # which may pass
            raise InputError(f"{where}: could not be read: {reason}") from None
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            said = f"{error.filename or where}: could not be read: {error.strerror or reason}"
            raise InputError(said) from None
        raise _Damaged(
            f"{where}: could not be read as a checkpoint: {reason}; if it is damaged, delete it, and the "
            "run goes on from the one before, or anew"
        ) from None
