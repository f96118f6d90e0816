"""The order of operations of the loop, seen with a step that only notes when it is called."""

import jax.numpy as jnp
import pytest

from qkd_jax.config import InputError
from qkd_jax.train import checkpoint, loop
from qkd_jax.train.state import TrainState


def state_at(step):
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"w": jnp.zeros(2) + step},
        average=None,
        variables={},
        opt_state=(),
    )


class Metric:
    """A loss that notes when the host reads it."""

    def __init__(self, notes, step, value=0.5):
        self.notes, self.step, self.value = notes, step, value

    def __float__(self):
        self.notes.append(f"read {self.step}")
        return self.value


def run(tmp_path, scores, *, epochs, epoch_steps=3, bad_step=None):
    notes = []

    def train_step(state, batch):
        assert batch == int(state.step)
        step = int(state.step) + 1
        notes.append(f"step {step}")
        return state_at(step), {"loss": Metric(notes, step, float("nan") if step == bad_step else 0.5)}

    def validate(variables):
        notes.append(f"valid {int(variables['params']['w'][0])}")
        return {"auc": scores.pop(0), "eer": 10.0}

    loop.fit(
        train_step,
        state_at(0),
        lambda step: range(step, 1000),
        validate,
        folder=tmp_path / "m",
        epochs=epochs,
        epoch_steps=epoch_steps,
    )
    return notes


def test_a_step_is_dispatched_before_the_last_ones_metrics_are_read(tmp_path):
    assert run(tmp_path, [70.0], epochs=1) == [
        "step 1",
        "step 2",
        "read 1",
        "step 3",
        "read 2",
        "read 3",
        "valid 3",
    ]


def test_the_last_and_the_best_are_kept(tmp_path):
    run(tmp_path, [70.0, 90.0, 80.0, 85.0], epochs=4)
    with checkpoint.open_checkpoints(tmp_path / "m" / "checkpoints") as manager:
        assert list(manager.all_steps()) == [6, 12]
        assert manager.best_step() == 6
    assert float(checkpoint.best_model(tmp_path / "m" / "checkpoints", state_at(0))["params"]["w"][0]) == 6


def test_it_goes_on_from_the_last_checkpoint_not_the_best(tmp_path):
    run(tmp_path, [90.0, 80.0], epochs=2)
    notes = run(tmp_path, [70.0], epochs=3)
    assert notes[0] == "step 7"
    assert notes[-1] == "valid 9"
    assert run(tmp_path, [], epochs=3) == []


def test_a_non_finite_loss_stops_and_loses_nothing(tmp_path):
    with pytest.raises(InputError, match="m: loss became nan at step 5; try"):
        run(tmp_path, [70.0], epochs=2, bad_step=5)
    with checkpoint.open_checkpoints(tmp_path / "m" / "checkpoints") as manager:
        assert list(manager.all_steps()) == [3]
