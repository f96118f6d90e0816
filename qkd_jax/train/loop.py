"""The order of operations while one model trains, and nothing else."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qkd_jax.config import InputError
from qkd_jax.progress import track
from qkd_jax.train import checkpoint
from qkd_jax.train.log import json_lines
from qkd_jax.train.state import TrainState


def fit(
    train_step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    state: TrainState,
    batches_from: Callable[[int], Iterable[Any]],
    validate: Callable[[Any], dict[str, float]],
    *,
    folder: Path,
    epochs: int,
    epoch_steps: int,
) -> None:
    """Train to `epochs` epochs, going on from the last checkpoint in `folder` if there is one.

    `batches_from(step)` are the batches from that step on.  After each epoch:
    `validate(variables)` gives `auc` and `eer`, a line goes to the log and the terminal, and
    the newest and the best state are kept.  Raises InputError on a non-finite loss or gradient;
    what was saved stays.
    """
    name, last_step = folder.name, epochs * epoch_steps
    with checkpoint.open_checkpoints(folder / "checkpoints") as checkpoints:
        latest = checkpoints.latest_step()
        if latest is not None:
            state = checkpoint.restore(checkpoints, latest, state)
        first_step = int(state.step)
        if first_step >= last_step:
            return
        if first_step:
            print(f"{name}: going on from epoch {first_step // epoch_steps} of {epochs}", flush=True)

        with json_lines(folder / "log.jsonl", first_step) as log:
            losses: list[float] = []

            def record(step: int, metrics: Any) -> None:
                values = {key: float(value) for key, value in metrics.items()}
                for key, value in values.items():
                    if not math.isfinite(value):
                        raise InputError(
                            f"{name}: {key} became {value} at step {step}; try a lower "
                            "train.learning_rate or train.clip_norm, or another train.seed"
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
                if step % epoch_steps:
                    continue
                record(*running)
                running = None
                valid = validate(state.model)
                loss, epoch = sum(losses) / len(losses), step // epoch_steps
                losses.clear()
                log(step=step, epoch=epoch, epoch_loss=loss, valid=valid)
                checkpoint.save(checkpoints, state, valid)
                print(
                    f"{name}: epoch {epoch}/{epochs}  loss {loss:.4f}  "
                    f"valid AUC {valid['auc']:.1f}  EER {valid['eer']:.1f}",
                    flush=True,
                )
