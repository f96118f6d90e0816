"""The order of operations of the loop, with a step that only records when it is called."""

import re
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from qkd_jax.errors import InputError
from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.state import TrainState
from qkd_jax.training import loop


def state_at(step):
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"w": jnp.zeros(2) + step},
        average=None,
        variables={},
        opt_state=(),
    )


class Metric:
    """A loss that records when the host reads it."""

    def __init__(self, notes, step, value=0.5):
        self.notes, self.step, self.value = notes, step, value

    def __float__(self):
        self.notes.append(f"read {self.step}")
        return self.value


def run(
    tmp_path,
    scores,
    *,
    epochs,
    epoch_steps=3,
    bad_step=None,
    patience=None,
    stop_at=None,
    number=signal.SIGTERM,
    times=1,
):
    notes = []

    def train_step(state, batch):
        assert batch == int(state.step)
        step = int(state.step) + 1
        notes.append(f"step {step}")
        for _ in range(times if step == stop_at else 0):
            signal.raise_signal(number)
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
        patience=patience,
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


def test_the_last_two_and_the_best_are_kept(tmp_path):
    run(tmp_path, [70.0, 90.0, 80.0, 85.0], epochs=4)
    with checkpoints.open_checkpoints(tmp_path / "m" / "checkpoints") as manager:
        assert list(manager.all_steps()) == [6, 9, 12]
        assert manager.best_step() == 6
    assert float(checkpoints.best_model(tmp_path / "m" / "checkpoints", state_at(0))["params"]["w"][0]) == 6


def test_it_resumes_from_the_last_checkpoint_not_the_best(tmp_path):
    run(tmp_path, [90.0, 80.0], epochs=2)
    notes = run(tmp_path, [70.0], epochs=3)
    assert notes[0] == "step 7"
    assert notes[-1] == "valid 9"
    assert run(tmp_path, [], epochs=3) == []


def test_a_non_finite_loss_stops_and_loses_nothing(tmp_path):
    with pytest.raises(InputError, match="m: loss became nan at step 5; try"):
        run(tmp_path, [70.0], epochs=2, bad_step=5)
    with checkpoints.open_checkpoints(tmp_path / "m" / "checkpoints") as manager:
        assert list(manager.all_steps()) == [3]


def test_it_ends_after_so_many_epochs_that_were_not_the_best(tmp_path, capsys):
    notes = run(tmp_path, [70.0, 80.0, 75.0, 78.0], epochs=9, patience=2)
    assert notes[-1] == "valid 12"
    assert capsys.readouterr().out.splitlines()[-1] == "m: no new best for 2 epochs, done"
    # The same command finds it done; with a best epoch after the second, there would have been more.
    assert run(tmp_path, [], epochs=9, patience=2) == []
    with checkpoints.open_checkpoints(tmp_path / "m" / "checkpoints") as manager:
        assert (manager.best_step(), manager.latest_step()) == (6, 12)
    assert run(tmp_path, [90.0, 60.0], epochs=6, patience=3)[-1] == "valid 18"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop_at", [1, 4, 5, 6])
def test_asked_to_stop_it_finishes_the_step_and_resumes_exactly(tmp_path, number, stop_at):
    before = signal.getsignal(number)
    run(tmp_path / "whole", [70.0, 60.0], epochs=2)
    with pytest.raises(KeyboardInterrupt, match=f"m: stopped at step {stop_at} and saved"):
        run(tmp_path / "cut", [70.0, 60.0], epochs=2, stop_at=stop_at, number=number)
    assert signal.getsignal(number) is before
    rest = [70.0, 60.0][stop_at // 3 :]
    notes = run(tmp_path / "cut", rest, epochs=2)
    assert rest == [] and (not notes or notes[0] == f"step {stop_at + 1}")
    whole, cut = (tmp_path / name / "m" for name in ("whole", "cut"))
    assert (cut / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    with checkpoints.open_checkpoints(cut / "checkpoints") as manager:
        assert manager.latest_step() == 6 and manager.best_step() == 3


def test_a_state_saved_within_an_epoch_is_not_the_best(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [], epochs=2, stop_at=2)
    with pytest.raises(InputError, match=r"expected a finished epoch, found none; qkd-jax train resumes"):
        checkpoints.best_model(tmp_path / "m" / "checkpoints", state_at(0))


def test_asked_twice_it_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path, [70.0], epochs=2, stop_at=5, times=2)
    assert not str(caught.value)
    with checkpoints.open_checkpoints(tmp_path / "m" / "checkpoints") as manager:
        assert list(manager.all_steps()) == [3]


def test_a_checkpoint_without_room_on_the_disk_is_named_and_the_last_one_stays(tmp_path, monkeypatch):
    run(tmp_path, [70.0], epochs=1)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    message = (
        r"checkpoints/6: could not be written: 0\.2 MB needed, 0\.1 MB free; step 3 is kept, and the same"
    )
    with pytest.raises(InputError, match=message):
        run(tmp_path, [80.0], epochs=2)
    monkeypatch.undo()
    assert run(tmp_path, [80.0], epochs=2)[0] == "step 4"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
@pytest.mark.parametrize("which", ["default/_METADATA", "metrics/metrics", "default/manifest.ocdbt", "**/*"])
def test_a_damaged_checkpoint_is_set_aside_and_training_resumes_from_the_one_before(tmp_path, which, capsys):
    run(tmp_path, [80.0, 70.0, 60.0], epochs=3)
    last = tmp_path / "m" / "checkpoints" / "9"
    damaged = [path for path in last.glob(which) if path.is_file()]
    assert damaged
    for path in damaged:
        path.write_bytes(b"")
    assert run(tmp_path, [60.0, 50.0], epochs=4)[0] == "step 7"
    printed = capsys.readouterr().out
    assert re.search(
        r"m/checkpoints/9: could not be read as a checkpoint: .*; moved to .*/m/damaged-9\n", printed
    )
    assert (tmp_path / "m" / "damaged-9").is_dir()
    with checkpoints.open_checkpoints(tmp_path / "m" / "checkpoints") as manager:
        assert list(manager.all_steps()) == [3, 9, 12] and manager.best_step() == 3
