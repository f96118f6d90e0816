"""The order of operations of the loop, with a step that only records when it is called."""

import re
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.state import TrainState
from qkd_jax.training import loop
from tests.faults import refused


def state_at(step):
    params = {"w": jnp.zeros(2) + step}
    return TrainState(jnp.asarray(step, jnp.int32), params, average=None, variables={}, opt_state=())


class Metric:
    """A loss that records when the host reads it."""

    def __init__(self, notes, step, value=0.5):
        self.notes, self.step, self.value = notes, step, value

    def __float__(self):
        self.notes.append(f"read {self.step}")
        return self.value


def run(
    folder, scores, *, epochs, bad_step=None, patience=None, stop_at=None, number=signal.SIGTERM, times=1
):
    """The notes of a run of epochs of three steps each, with these scores of validation."""
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

    settings = {"folder": folder / "m", "epochs": epochs, "epoch_steps": 3, "patience": patience}
    loop.fit(train_step, state_at(0), lambda step: range(step, 1000), validate, **settings)
    return notes


def kept(folder):
    """The steps of the checkpoints, and the best of them."""
    with checkpoints.open_checkpoints(folder / "m" / "checkpoints") as manager:
        return list(manager.all_steps()), manager.best_step()


def test_a_step_is_dispatched_before_the_last_ones_metrics_are_read(tmp_path):
    expected = "step 1, step 2, read 1, step 3, read 2, read 3, valid 3"
    assert ", ".join(run(tmp_path, [70.0], epochs=1)) == expected


def test_the_last_two_and_the_best_are_kept_and_it_resumes_from_the_last(tmp_path):
    run(tmp_path, [70.0, 90.0, 80.0, 85.0], epochs=4)
    assert kept(tmp_path) == ([6, 9, 12], 6)
    assert float(checkpoints.best_model(tmp_path / "m" / "checkpoints", state_at(0))["params"]["w"][0]) == 6
    notes = run(tmp_path, [70.0], epochs=5)
    assert (notes[0], notes[-1]) == ("step 13", "valid 15")
    assert run(tmp_path, [], epochs=5) == []


def test_a_non_finite_loss_stops_and_loses_nothing(tmp_path):
    with refused("m: loss became nan at step 5; try"):
        run(tmp_path, [70.0], epochs=2, bad_step=5)
    assert kept(tmp_path)[0] == [3]


def test_it_ends_after_so_many_epochs_that_were_not_the_best(tmp_path, capsys):
    assert run(tmp_path, [70.0, 80.0, 75.0, 78.0], epochs=9, patience=2)[-1] == "valid 12"
    assert capsys.readouterr().out.splitlines()[-1] == "m: no new best for 2 epochs, done"
    # The same command finds it done; with a best epoch after the second, there would have been more.
    assert run(tmp_path, [], epochs=9, patience=2) == []
    steps, best = kept(tmp_path)
    assert (best, steps[-1]) == (6, 12)
    assert run(tmp_path, [90.0, 60.0], epochs=6, patience=3)[-1] == "valid 18"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop_at", [1, 4, 5, 6])
def test_asked_to_stop_it_finishes_the_step_and_resumes_exactly(tmp_path, number, stop_at):
    before, (whole, cut) = signal.getsignal(number), (tmp_path / "whole", tmp_path / "cut")
    run(whole, [70.0, 60.0], epochs=2)
    with pytest.raises(KeyboardInterrupt, match=f"m: stopped at step {stop_at} and saved"):
        run(cut, [70.0, 60.0], epochs=2, stop_at=stop_at, number=number)
    assert signal.getsignal(number) is before
    rest = [70.0, 60.0][stop_at // 3 :]
    notes = run(cut, rest, epochs=2)
    assert rest == [] and (not notes or notes[0] == f"step {stop_at + 1}")
    assert (cut / "m" / "log.jsonl").read_text() == (whole / "m" / "log.jsonl").read_text()
    steps, best = kept(cut)
    assert (steps[-1], best) == (6, 3)


def test_asked_twice_it_stops_at_once_and_a_state_saved_within_an_epoch_is_not_the_best(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [], epochs=2, stop_at=2)
    with refused(r"expected a finished epoch, or in a final run a finished model, found none; "):
        checkpoints.best_model(tmp_path / "m" / "checkpoints", state_at(0))
    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path, [70.0], epochs=2, stop_at=5, times=2)
    assert not str(caught.value)
    assert 3 in kept(tmp_path)[0] and 5 not in kept(tmp_path)[0]


def test_a_checkpoint_without_room_on_the_disk_is_named_and_the_last_one_stays(tmp_path, monkeypatch):
    run(tmp_path, [70.0], epochs=1)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    room = r"0\.2 MB needed, 0\.1 MB free; step 3 is kept, and the same"
    with refused(rf"checkpoints/6: could not be written: {room}"):
        run(tmp_path, [80.0], epochs=2)
    monkeypatch.undo()
    assert run(tmp_path, [80.0], epochs=2)[0] == "step 4"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
@pytest.mark.parametrize("which", ["default/_METADATA", "metrics/metrics", "default/manifest.ocdbt", "**/*"])
def test_a_damaged_checkpoint_is_set_aside_and_training_resumes_from_the_one_before(tmp_path, which, capsys):
    run(tmp_path, [80.0, 70.0, 60.0], epochs=3)
    damaged = [path for path in (tmp_path / "m" / "checkpoints" / "9").glob(which) if path.is_file()]
    assert damaged
    for path in damaged:
        path.write_bytes(b"")
    assert run(tmp_path, [60.0, 50.0], epochs=4)[0] == "step 7"
    message = r"m/checkpoints/9: could not be read as a checkpoint: .*; moved to .*/m/damaged-9\n"
    assert re.search(message, capsys.readouterr().out)
    assert (tmp_path / "m" / "damaged-9").is_dir()
    assert kept(tmp_path) == ([3, 9, 12], 3)
