"""Runs that are killed, stopped or out of disk: the same command resumes and ends in the same bits."""

import re
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from filelock import FileLock

from qkd_jax import train
from qkd_jax.config import to_json
from qkd_jax.errors import InputError
from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.folder import load_run

# Runs a config.  A signal is sent when the progress of a title reaches an item, when a file appears, or
# instead of a call of a function; or files are limited to a size.
COMMAND = """
import importlib, os, resource, sys, threading, time
from pathlib import Path
from qkd_jax.system import progress
from qkd_jax.commands.cli import run_command
from qkd_jax.config import RunConfig, from_json

settings, number, *trap = sys.argv[1:]
times = 1 + (trap[:1] == ["twice"])
trap = trap[times - 1 :]

def track(items, count, title):
    for index, item in enumerate(items, 1):
        if trap == [title, str(index)]:
            for _ in range(times):
                os.kill(os.getpid(), int(number))
        yield item

def watch(folder, pattern):
    while not any(Path(folder).glob(pattern)):
        time.sleep(0.0005)
    os.kill(os.getpid(), int(number))

if trap and trap[0] == "limit":
    # Writing beyond that size fails as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(trap[1]),))
elif trap and Path(trap[0]).is_dir():
    threading.Thread(target=watch, args=trap, daemon=True).start()
elif trap and trap[0].startswith("qkd_jax."):
    setattr(importlib.import_module(trap[0]), trap[1], lambda *_, **__: os.kill(os.getpid(), int(number)))
else:
    progress.track = track

def main(arguments):
    from qkd_jax import train
    train(from_json(RunConfig, Path(settings).read_text(), settings))

sys.exit(run_command(main, []))
"""
KILL = int(signal.SIGKILL)


def run(settings, number=0, *trap, before=(), wait=True):
    arguments = [*before, sys.executable, "-c", COMMAND, *map(str, [settings, number, *trap])]
    if wait:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def settings(tiny_config, tmp_path):
    """A file with the settings of a run in `tmp_path`."""
    path = tmp_path / "settings.json"
    path.write_text(to_json(tiny_config(tmp_path)))
    return path


def assert_same_end(folder, finished):
    loaded, expected = load_run(folder), load_run(finished)
    norm = (np.zeros(loaded.shape[1], np.float32),) * 2
    for name in expected.names:
        last = []
        for run in (loaded, expected):
            path = run.model_folder(name) / "checkpoints"
            with checkpoints.open_checkpoints(path, read_only=True) as manager:
                steps = manager.latest_step(), manager.best_step()
                state = checkpoints.restore(manager, manager.latest_step(), run.new_state(name, norm))
            last.append((steps, state, run.best_variables(name)))
        jax.tree.map(np.testing.assert_array_equal, *last)
        logs = [(run.model_folder(name) / "log.jsonl").read_text() for run in (loaded, expected)]
        assert logs[0] == logs[1]
    assert (folder / "results.json").read_text() == (finished / "results.json").read_text()


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_bit_identical(finished, settings, tmp_path):
    def left(pattern):
        return len(list(tmp_path.rglob(pattern)))

    # Making the demo's recordings.
    assert run(settings, KILL, "making recordings", 30).returncode == -KILL
    assert left("*.wav") == 29 and left("metadata.csv") == 0
    # Computing features.
    assert run(settings, KILL, "features", 20).returncode == -KILL
    assert 19 <= left("*.npy") < 60 and left("config.json") == 0
    # The teacher's second epoch, with the log ahead of the checkpoint and its last line cut.
    assert run(settings, KILL, "teacher", 6).returncode == -KILL
    assert left("teacher/checkpoints/3") == 1 and left("teacher/checkpoints/6") == 0
    log = tmp_path / "tiny" / "models" / "teacher" / "log.jsonl"
    assert len(log.read_text().splitlines()) >= 3 + 1 + 1
    log.write_text(log.read_text() + '{"step": 6, "lo')
    # A student's checkpoint, while it is being written.
    assert run(settings, KILL, tmp_path / "tiny", "models/four/checkpoints/*tmp*").returncode == -KILL
    assert left("four/checkpoints/*tmp*") == 1 and left("four/checkpoints/3") == 0
    # A student's first epoch, and then the report.
    assert run(settings, KILL, "four", 3).returncode == -KILL
    assert run(settings, KILL, "qkd_jax.evaluation.report", "write_report").returncode == -KILL
    assert left("results.json") == 1 and left("report.html") == 0

    done = run(settings)
    assert done.returncode == 0, done.stderr
    assert left("report.html") == 1 and left("*tmp*") == 0
    assert_same_end(tmp_path / "tiny", finished)


def test_a_run_that_is_asked_to_stop_finishes_the_step_saves_and_tells_how_to_resume(
    finished, tiny_config, settings, tmp_path
):
    folder = tmp_path / "tiny"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("four"))
    done = run(settings, int(signal.SIGTERM), "four", 5)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines() == [
        "Saving and stopping; press Ctrl-C again to quit immediately.",
        "four: stopped at step 5 and saved; run the same command again to continue",
    ]
    assert (folder / "models" / "four" / "checkpoints" / "5").is_dir()
    train(tiny_config(tmp_path))
    assert_same_end(folder, finished)


def test_a_run_that_is_stopped_while_it_computes_features_keeps_them(settings, tmp_path):
    done = run(settings, int(signal.SIGTERM), "features", 20)
    assert done.returncode == 130
    assert done.stderr.splitlines() == [
        "Saving and stopping; press Ctrl-C again to quit immediately.",
        "stopped; run the same command again to continue",
    ]
    assert 19 <= len(list(tmp_path.rglob("*.npy"))) < 60 and not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(finished, tiny_config, settings, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("plain", "four"))
    for size, named in ((600, r"\.features/.*\.npy"), (3000, r"tiny/models/plain/checkpoints/3")):
        done = run(settings, 0, "limit", size)
        assert done.returncode == 2
        assert re.search(
            rf"^error: .*/{named}: could not be written: File too large", done.stderr, re.MULTILINE
        )
    train(tiny_config(tmp_path))
    assert_same_end(folder, finished)


def test_a_second_run_in_the_same_folder_is_refused(tiny_config, tmp_path):
    (tmp_path / "tiny").mkdir()
    with (
        FileLock(tmp_path / "tiny" / ".lock"),
        pytest.raises(InputError, match="tiny: another process trains this run; use another --name"),
    ):
        train(tiny_config(tmp_path))


@pytest.mark.slow
def test_a_run_may_be_trained_outside_the_main_thread(finished, tiny_config, tmp_path):
    shutil.copytree(finished, tmp_path / "tiny", ignore=shutil.ignore_patterns("four"))
    thread = threading.Thread(target=lambda: train(tiny_config(tmp_path)))
    thread.start()
    thread.join()
    assert_same_end(tmp_path / "tiny", finished)
