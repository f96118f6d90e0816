"""Runs in processes of their own, which can be stopped at a given moment, and comparisons of runs."""

import json
import subprocess
import sys

import jax
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.folder import load_run

# Runs a config.  A signal is sent when the progress of a title reaches an item, when a file appears, or
# instead of a call of a function; or files are limited to a size.
COMMAND = """
import importlib, os, resource, sys, threading, time
from pathlib import Path
from qkd_jax.system import devices, progress
from qkd_jax.commands.cli import run_command
from qkd_jax.config import RunConfig, from_json

settings, number, *trap = sys.argv[1:]

def track(items, count, title):
    for index, item in enumerate(items, 1):
        if trap == [title, str(index)]:
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
    if "JAX_NUM_PROCESSES" in os.environ:
        devices.join_processes()
    train(from_json(RunConfig, Path(settings).read_text(), settings))

sys.exit(run_command(main, []))
"""


def run(settings, number=0, *trap, before=(), wait=True, env=None):
    arguments = [*before, sys.executable, "-c", COMMAND, *map(str, [settings, number, *trap])]
    if wait:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=env)
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def log_of(folder, name):
    """The lines of the log of a model of the run in `folder`."""
    return (folder / "models" / name / "log.jsonl").read_text().splitlines()


def assert_same_losses(folder, finished):
    """Loss and norm of the gradient at each step are those of the finished run, but for rounding."""
    for name in ("teacher", "plain", "four"):
        records = [map(json.loads, log_of(each, name)) for each in (folder, finished)]
        losses = [[(row["loss"], row["grad_norm"]) for row in rows if "loss" in row] for rows in records]
        assert_allclose(*losses, rtol=1e-4)


def assert_same_end(folder, finished):
    """Steps, states, best models, logs and results are those of the finished run, bit for bit."""
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
        jax.tree.map(assert_array_equal, *last)
        assert log_of(folder, name) == log_of(finished, name)
    assert (folder / "results.json").read_text() == (finished / "results.json").read_text()
