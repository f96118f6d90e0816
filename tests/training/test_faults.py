"""Faults around a run: full and read-only disks, unreadable files, a clock set back, non-finite values."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qkd_jax import train
from qkd_jax.data.dataset import load_split
from qkd_jax.run_folder.folder import load_run
from tests.faults import refused
from tests.training.runs import assert_same_end, run

ROOT = Path(__file__).parents[2]
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
mounts = pytest.mark.skipif(
    not IS_ROOT or shutil.which("mount") is None, reason="mounting a file system takes root"
)


@contextlib.contextmanager
def mounted(folder):
    """A new file system at `folder`; yields the function that changes its options."""

    def mount(*options):
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], check=True)

    folder.mkdir()
    try:
        mount("size=100k")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        yield lambda *options: mount("remount", *options)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@mounts
@pytest.mark.slow
def test_a_disk_that_is_full_again_and_again_loses_nothing(finished, settings, folder):
    disk, full = folder.parent, []
    with mounted(disk) as remount:
        for size in range(300, 6000, 200):
            remount(f"size={size}k")
            done = run(settings)
            if done.returncode == 0:
                break
            assert done.returncode == 2
            line = re.search(rf"^error: {disk}/(.*): could not be written: .*\n\Z", done.stderr, re.M)
            assert line, done.stderr
            full.append(Path(line[1]))
        assert done.returncode == 0
        assert not list(disk.rglob("*.part"))
        assert_same_end(folder, finished)
    # In recordings, features, checkpoints and the report, or whatever else is as large.
    assert {".wav", ".npy"} <= {path.suffix for path in full}
    assert any("checkpoints" in path.parts for path in full)


@mounts
@pytest.mark.slow
def test_a_read_only_run_is_scored_and_not_changed(settings, folder, tmp_path):
    with mounted(folder.parent) as remount:
        remount("size=50m")
        assert run(settings).returncode == 0
        remount("ro")
        done = run(settings)
        assert (done.returncode, done.stderr) == (2, f"error: {folder}/.lock: Read-only file system\n")
        figures = tmp_path / "figures.json"
        command = [sys.executable, ROOT / "eval.py", folder, "--json", figures]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{folder} is read-only: results were not saved"
        assert figures.read_text() == (folder / "results.json").read_text()


@pytest.mark.slow
@pytest.mark.skipif(
    IS_ROOT and shutil.which("setpriv") is None, reason="no permission stops root, without setpriv"
)
@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("tiny/config.json", "expected a run's settings: .*Permission denied.*"),
        ("tiny/clips.jsonl", "expected a run's clips.jsonl: .*Permission denied.*"),
        ("tiny/norm.npz", "expected mean and standard deviation .*Permission denied.*"),
        ("tiny/models/plain/checkpoints", "could not be read: Permission denied"),
        ("tiny/data/audio/train-00003.wav", "expected a recording, found one that can't be read: .*"),
    ],
)
def test_unreadable_files_are_named(finished, settings, folder, closed, message):
    shutil.copytree(finished.parent, folder.parent)
    path = folder.parent / closed
    path.chmod(0)
    powers = "-dac_override,-dac_read_search"
    dropped = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"] if IS_ROOT else []
    done = run(settings, before=dropped)
    path.chmod(0o755)
    assert done.returncode == 2
    assert re.search(rf"^(error: | +){path}(/.*)?: {message}$", done.stderr, re.M), done.stderr
    assert run(settings).returncode == 0  # nothing is lost


@pytest.mark.slow
def test_a_clock_set_back_changes_nothing(finished, settings, folder):
    # All files that a stopped run has left are dated years in the future.
    assert run(settings, int(signal.SIGTERM), "four", 2).returncode == 130
    for path in folder.rglob("*"):
        if "data" not in path.parts:
            os.utime(path, (4e9, 4e9))
    assert run(settings).returncode == 0
    assert_same_end(folder, finished)


@pytest.mark.slow
def test_only_one_of_two_processes_can_start_a_run(finished, settings, folder):
    both = [run(settings, wait=False) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    assert any("another process trains this run; use another --name" in error for error in errors)
    assert_same_end(folder, finished)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "valid"])
def test_features_that_are_not_finite_are_named(finished, config, folder, begin, split):
    loaded = load_run(begin("plain", "four"))
    entry = load_split(loaded.config, loaded.clips, split, loaded.cache).features.entries[5]
    spoilt = np.load(entry)
    spoilt[3, 2] = np.nan
    np.save(entry, spoilt)
    with refused(rf"{entry}: expected finite log-mel .*; delete the file to compute them"):
        train(config)
    entry.unlink()
    train(config)
    assert_same_end(folder, finished)


def test_logits_of_a_teacher_that_are_not_finite_are_named(config, begin):
    path = begin("four") / "models" / "teacher" / "teaching.npz"
    with np.load(path) as kept:
        arrays = dict(kept)
    arrays["logits"][7, 1] = np.inf
    np.savez(path, **arrays)
    with refused(f"{path}: expected finite logits"):
        train(config)
