"""The order of operations while one model trains, and nothing else."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import TITLES
from qkd_jax.run_folder import checkpoints as checkpoint
from qkd_jax.run_folder.log import open_log, read_log
from qkd_jax.run_folder.state import TrainState
from qkd_jax.system.devices import any_process, everywhere, is_first
from qkd_jax.system.interrupt import asked_to_stop, stop_requests
from qkd_jax.system.progress import track

_ASK_EVERY = 10  # steps


def _no_log(**record: Any) -> None:
    """The log of every process but the first: none."""


def fit(
    train_step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    state: TrainState,
    batches_from: Callable[[int], Iterable[Any]],
    validate: Callable[[Any], dict[str, float]],
    *,
    folder: Path,
    epochs: int,
    epoch_steps: int,
    patience: int | None = None,
    keep_last: bool = False,
    announce: Callable[[int], None] = lambda updates: None,
) -> None:
    """Train to `epochs` epochs, resuming from the last checkpoint in `folder` if there is one.

    `batches_from(step)` gives the batches from that step on.  After each epoch, `validate(variables)` gives
    figures (`auc` and `eer`, or `psds` and more), one line goes to the log and the terminal, and the newest
    and the best state are kept; with `keep_last`, the last counts as the best.  After `patience` epochs
    without a new best, training ends.  When asked to stop, it finishes the step, saves the state and raises
    KeyboardInterrupt.  If anything is left to train, `announce(updates)` is called before, with the number
    left.  Raises InputError for a non-finite loss or gradient; saved states stay.
    """
    name, last_step = folder.name, epochs * epoch_steps
    with stop_requests(), checkpoint.open_checkpoints(folder / "checkpoints") as checkpoints:

        def out_of_patience(step: int) -> bool:
            best = checkpoints.best_step()
            return patience is not None and best is not None and step - best >= patience * epoch_steps

        state = everywhere(state)
        state = checkpoint.restore_last(checkpoints, state) or state
        first_step = int(state.step)
        if first_step >= last_step or out_of_patience(first_step):
            return
        if first_step:
            at = f"epoch {first_step // epoch_steps} of {epochs}"
            print(f"{name}: resuming from step {first_step}, {at}", flush=True)
        announce(last_step - first_step)

        begun = first_step - first_step % epoch_steps
        # Losses of this epoch; a run that was stopped within it has recorded the first ones.
        losses = [
            record["loss"]
            for record in read_log(folder, first_step)
            if record["step"] > begun and "loss" in record
        ]
        with open_log(folder, first_step) if is_first() else nullcontext(_no_log) as log:

            def record(step: int, metrics: Any) -> None:
                values = {key: float(value) for key, value in metrics.items()}
                for key, value in values.items():
                    if not math.isfinite(value):
                        raise InputError(
                            f"{name}: {key} became {value} at step {step}; try a lower "
                            "learning rate or --recipe.clip-norm, or another --recipe.seed"
                        )
                losses.append(values["loss"])
                log(step=step, **values)

            running = None
            steps = zip(range(first_step + 1, last_step + 1), batches_from(first_step))
            for step, batch in track(steps, last_step - first_step, name):
                state, metrics = train_step(state, batch)
                # The device works on this step while the host reads the last one's metrics.
                if running is not None:
                    record(*running)
                running = (step, metrics)
                ends_epoch = step % epoch_steps == 0
                # Several processes must stop at the same step, so they ask each other.
                asks = jax.process_count() == 1 or step % _ASK_EVERY == 0
                if not ends_epoch and not (asks and any_process(asked_to_stop())):
                    continue
                record(*running)
                running = None
                valid = None
                if ends_epoch:
                    valid = validate(state.model)
                    loss, epoch = sum(losses) / len(losses), step // epoch_steps
                    losses.clear()
                    log(step=step, epoch=epoch, epoch_loss=loss, valid=valid)
                    figures = "  ".join(f"{TITLES.get(key, key)} {value:.1f}" for key, value in valid.items())
                    print(f"{name}: epoch {epoch}/{epochs}  loss {loss:.4f}  valid {figures}", flush=True)
                checkpoint.save(checkpoints, state, valid if not keep_last or step == last_step else None)
                if any_process(asked_to_stop()):
                    raise KeyboardInterrupt(f"{name}: stopped at step {step} and saved")
                if out_of_patience(step):
                    print(f"{name}: no new best for {patience} epochs, done", flush=True)
                    return
