"""Runs that are killed, stopped or out of disk: the same command resumes and ends in the same bits."""

import re
import signal
import threading

import pytest
from filelock import FileLock

from qkd_jax import train
from tests.faults import refused
from tests.training.runs import assert_same_end, run

KILL = int(signal.SIGKILL)
SAVING = "Saving and stopping; press Ctrl-C again to quit immediately."


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_bit_identical(finished, settings, folder):
    def left(pattern):
        return len(list(folder.parent.rglob(pattern)))

    # Making the demo's recordings.
    assert run(settings, KILL, "making recordings", 30).returncode == -KILL
    assert left("*.wav") == 29 and left("metadata.csv") == 0
    # Computing features.
    assert run(settings, KILL, "features", 20).returncode == -KILL
    assert 19 <= left("*.npy") < 60 and left("config.json") == 0
    # The teacher's second epoch, with the log ahead of the checkpoint and its last line cut.
    assert run(settings, KILL, "teacher", 6).returncode == -KILL
    assert left("teacher/checkpoints/3") == 1 and left("teacher/checkpoints/6") == 0
    log = folder / "models" / "teacher" / "log.jsonl"
    assert len(log.read_text().splitlines()) >= 3 + 1 + 1
    log.write_text(log.read_text() + '{"step": 6, "lo')
    # A student's checkpoint, while it is being written.
    assert run(settings, KILL, folder, "models/four/checkpoints/*tmp*").returncode == -KILL
    assert left("four/checkpoints/*tmp*") == 1 and left("four/checkpoints/3") == 0
    # A student's first epoch, and then the report.
    assert run(settings, KILL, "four", 3).returncode == -KILL
    assert run(settings, KILL, "qkd_jax.evaluation.report", "write_report").returncode == -KILL
    assert left("results.json") == 1 and left("report.html") == 0

    done = run(settings)
    assert done.returncode == 0, done.stderr
    assert left("report.html") == 1 and left("*tmp*") == 0
    assert_same_end(folder, finished)


def test_a_run_that_is_asked_to_stop_finishes_the_step_saves_and_tells_how_to_resume(
    finished, config, settings, folder, begin
):
    begin("four")
    done = run(settings, int(signal.SIGTERM), "four", 5)
    assert done.returncode == 130, done.stderr
    stopped = "four: stopped at step 5 and saved; run the same command again to continue"
    assert done.stderr.splitlines() == [SAVING, stopped]
    assert (folder / "models" / "four" / "checkpoints" / "5").is_dir()
    train(config)
    assert_same_end(folder, finished)


def test_a_run_that_is_stopped_while_it_computes_features_keeps_them(settings, folder):
    done = run(settings, int(signal.SIGTERM), "features", 20)
    assert done.returncode == 130
    assert done.stderr.splitlines() == [SAVING, "stopped; run the same command again to continue"]
    assert 19 <= len(list(folder.parent.rglob("*.npy"))) < 60 and not list(folder.parent.rglob("*.part"))


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(finished, config, settings, folder, begin):
    begin("plain", "four")
    for size, named in ((600, r"\.features/.*\.npy"), (3000, r"tiny/models/plain/checkpoints/3")):
        done = run(settings, 0, "limit", size)
        assert done.returncode == 2
        assert re.search(rf"^error: .*/{named}: could not be written: File too large", done.stderr, re.M)
    train(config)
    assert_same_end(folder, finished)


def test_a_second_run_in_the_same_folder_is_refused(config, folder):
    folder.mkdir(parents=True)
    message = "tiny: another process trains this run; use another --name"
    with FileLock(folder / ".lock"), refused(message):
        train(config)


@pytest.mark.slow
def test_a_run_may_be_trained_outside_the_main_thread(finished, config, folder, begin):
    begin("four")
    thread = threading.Thread(target=lambda: train(config))
    thread.start()
    thread.join()
    assert_same_end(folder, finished)
