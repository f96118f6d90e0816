"""Recordings that have moved since a run began, and folders that can't be written."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qkd_jax import export, score, train
from qkd_jax.commands import evaluate
from qkd_jax.config import LSTMConfig, ManifestData, ModelConfig, QuantConfig, with_data
from qkd_jax.data import cache as cache_module
from qkd_jax.data.cache import cached, read_entry
from qkd_jax.run_folder.folder import load_run, open_run
from qkd_jax.run_folder.recordings import check_recordings, moved_to, same_but_moved
from tests.faults import refused, refused_in_one_line
from tests.recordings import noise, record

ROOT = Path(__file__).parents[2]
LSTM = LSTMConfig(hidden_size=4)


@pytest.fixture(scope="module")
def begun(finished, tiny_config, tmp_path_factory):
    """A finished run on recordings in a folder of its own, with a student that can be exported."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(finished / "data", folder / "old")
    models = {
        "plain": ModelConfig(network=LSTM, epochs=1),
        "integer": ModelConfig(network=LSTM.quantized(QuantConfig.integer(4)), start="plain", epochs=1),
    }
    data = ManifestData(root=str(folder / "old"), clip_seconds=0.4)
    return train(tiny_config(folder / "runs", data=data, models=models)).folder


@pytest.fixture
def moved(begun, tmp_path):
    """A copy of that run whose recordings have moved: the run, and their new folder."""
    runs, new = tmp_path / "runs", tmp_path / "new"
    shutil.copytree(begun.parent, runs)
    run = load_run(runs / begun.name)
    shutil.copytree(run.config.data.root, new)
    config = with_data(replace(run.config, runs=str(runs)), root=str(tmp_path / "old"))
    (run.folder / "config.json").write_text(
        (run.folder / "config.json").read_text().replace(str(begun.parents[1] / "old"), str(tmp_path / "old"))
    )
    return load_run(run.folder), new, config


def test_a_run_resumes_where_its_recordings_are_now(moved, begun, capsys):
    run, new, config = moved
    shutil.rmtree(run.model_folder("integer"))
    with refused_in_one_line(
        r"/old/audio/\S+\.wav: expected a recording of the run, found none; 60 of 60 are missing; if they "
        r"have moved, `qkd-jax train` with --data\.root DIR finds them for every command, `eval` for itself"
    ):
        train(config)
    again = train(with_data(config, root=str(new)))
    assert f"recordings: now in {new}, before in {run.config.data.root}" in capsys.readouterr().out
    assert again.results == load_run(begun).results
    # From now on, every command finds them.
    assert load_run(run.folder).config.data.root == str(new)
    assert export(run.folder, "integer").read_bytes() == export(begun, "integer").read_bytes()


def test_recordings_of_other_names_or_sizes_are_refused(moved):
    run, new, config = moved
    path = new / run.clips[7].name
    samples = path.read_bytes()
    path.write_bytes(samples[:-2])
    (new / run.clips[3].name).unlink()
    message = r"--data\.root: expected the 60 recordings of the run, .* found 2 missing or changed, .* "
    with refused_in_one_line(message + re.escape(run.clips[3].name)):
        train(with_data(config, root=str(new)))
    assert load_run(run.folder).config.data.root == run.config.data.root
    # A run of an earlier version has kept no sizes.
    sizes = run.folder / "sizes.npy"
    sizes.unlink()
    with refused("found 1 missing or changed"):
        moved_to(run, replace(run.config.data, root=str(new)))
    for array, expected in ((np.ones(1, int), "found 1"), (np.ones(60), "1-D array of integers")):
        np.save(sizes, array)
        with refused(rf"sizes\.npy: expected the sizes of 60 recordings.*{expected}"):
            moved_to(run, replace(run.config.data, root=str(new)))


def test_other_settings_are_still_fixed(moved):
    _, new, config = moved
    with refused(r"this run has recipe\.seed = 0, now 7; use"):
        train(with_data(replace(config, recipe=replace(config.recipe, seed=7)), root=str(new)))


def test_scores_of_moved_recordings_are_those_of_the_run(moved, begun, capsys):
    run, new, _ = moved
    with refused(r"expected a recording of the run, found none; 20 of 20 are missing; if they have moved"):
        score(run)
    with refused(r"16 of 16 are missing"):
        export(run, "integer")
    (run.folder / "results.json").unlink()
    evaluate.main([str(run.folder), "--data.root", str(new)], "qkd-jax eval")
    assert run.results == load_run(begun).results  # kept, as for the run's own recordings
    exported = export(begun, "integer")
    shutil.copy(exported, run.folder)
    for data in (None, str(new)):
        arguments = [str(run.folder / exported.name)] + (["--data.root", data] if data else [])
        if data is None:
            with refused("20 of 20 are missing"):
                evaluate.main(arguments, "qkd-jax eval")
        else:
            evaluate.main(arguments, "qkd-jax eval")


def test_other_recordings_in_the_same_layout_are_scored_as_others(moved, capsys):
    run, new, _ = moved
    path = new / next(clip.name for clip in run.clips if clip.split == "test")
    path.write_bytes(path.read_bytes() + bytes(2))
    before = (run.folder / "results.json").stat().st_mtime_ns
    score(run, data=replace(run.config.data, root=str(new)))
    assert "60 of 60 recordings share a name with a recording of the run" in capsys.readouterr().out
    assert (run.folder / "results.json").stat().st_mtime_ns == before


@pytest.fixture
def with_unlabelled(finished, tiny_config, tmp_path):
    """Settings of a run that has a checkpoint, and recordings without labels beside the others."""
    shutil.copytree(finished / "data", tmp_path / "old")
    (tmp_path / "more").mkdir()
    for index in range(3):
        record(tmp_path / "more", f"{index}.wav", noise(6400, index))
    data = ManifestData(root=str(tmp_path / "old"), unlabelled=str(tmp_path / "more"), clip_seconds=0.4)
    config = tiny_config(tmp_path / "runs", data=data)
    with open_run(config) as run:
        (run.model_folder("teacher") / "checkpoints" / "1").mkdir(parents=True)
    return config


def test_recordings_without_labels_may_move_too(with_unlabelled, tmp_path, capsys):
    (tmp_path / "more").rename(tmp_path / "there")
    there = str(tmp_path / "there")
    with refused(r"more/0\.wav: expected a .*; 3 of 63 are missing; .* with --data\.unlabelled DIR finds"):
        open_run(with_unlabelled).__enter__()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = with_data(with_unlabelled, root=str(tmp_path / "new"), unlabelled=there)
    record(tmp_path / "there", "1.wav", noise(100))
    with refused(
        r"--data\.unlabelled: expected the 63 recordings .* in \S+/there, found 1 missing or changed"
    ):
        open_run(moved).__enter__()
    record(tmp_path / "there", "1.wav", noise(6400))
    capsys.readouterr()
    with open_run(moved) as run:
        check_recordings(load_run(run.folder))
    assert capsys.readouterr().out == (
        f"recordings: now in {tmp_path}/new, before in {tmp_path}/old\n"
        f"recordings: now in {there}, before in {tmp_path}/more\n"
    )
    # Without them, it's another run.
    with refused(r"this run has data\.unlabelled = \S+/there, now None"):
        open_run(with_data(moved, unlabelled=None)).__enter__()


def test_scores_need_the_recordings_of_their_split_alone(with_unlabelled, tmp_path):
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    run = load_run(tmp_path / "runs" / "tiny")
    for clip in run.clips:
        if clip.split != "test":
            Path(str(clip.path).replace("/old/", "/new/")).unlink()
    data = replace(run.config.data, root=str(tmp_path / "new"))
    assert same_but_moved(run, data, "test") is None  # they are still where they were
    shutil.rmtree(tmp_path / "old")
    found = same_but_moved(run, data, "test")
    check_recordings(found, ["test"])
    assert same_but_moved(run, data, "valid") is None


def test_a_demo_is_not_told_to_move_its_recordings(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "data")
    with refused(r"60 of 60 are missing\Z"):
        check_recordings(load_run(tmp_path / "run"))


# Folders that can't be written.


WITHOUT_POWER = """
import ctypes, os, sys
for power in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, power, 0, 0, 0)  # PR_CAPBSET_DROP, which fails unless one is root
os.execv(sys.executable, [sys.executable, "-m", "qkd_jax", *sys.argv[1:]])
"""


def as_anyone(command):
    """Run `command` without root's power to write where nobody may."""
    arguments = [sys.executable, "-c", WITHOUT_POWER, *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, capture_output=True, text=True, env=environment)


@pytest.fixture
def read_only(begun, tmp_path):
    """A copy of the run, with an empty cache, all read-only."""
    folder = tmp_path / "runs"
    shutil.copytree(begun.parent, folder, ignore=shutil.ignore_patterns(".features"))
    (folder / ".features").mkdir()
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    yield folder / begun.name
    for path in paths:
        path.chmod(path.stat().st_mode | 0o200)


def test_a_read_only_run_is_scored_with_features_in_a_temporary_folder(read_only, begun, tmp_path):
    figures = tmp_path / "figures.json"
    done = as_anyone(["eval", read_only, "--json", figures])
    assert done.returncode == 0, done.stderr
    assert (
        f"features: not kept after this command, since {read_only.parent}/.features is read-only"
        in done.stdout
    )
    assert done.stdout.splitlines()[-1] == f"{read_only} is read-only: results were not saved"
    assert figures.read_text() == (begun / "results.json").read_text()
    assert not list((read_only.parent / ".features").iterdir())


@pytest.mark.slow
def test_a_read_only_run_is_exported_elsewhere(read_only, begun, tmp_path):
    done = as_anyone(["export", read_only / "integer"])
    message = f"error: {read_only}/integer.safetensors: could not be written: Permission denied; --out FILE"
    assert done.returncode == 2 and done.stderr == f"{message} writes to another place\n"
    done = as_anyone(["export", read_only / "integer", "--out", tmp_path / "mine.safetensors"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.safetensors").read_bytes() == export(begun, "integer").read_bytes()


def test_an_export_into_a_folder_that_is_not_there_is_one_line(begun, tmp_path):
    message = r"gone/m\.safetensors: could not be written: No such file or directory; --out FILE writes"
    with refused_in_one_line(message):
        export(begun, "integer", out=tmp_path / "gone" / "m.safetensors")


def test_entries_of_a_read_only_cache_are_read_and_others_are_made_elsewhere(tmp_path, monkeypatch):
    clips = [record(tmp_path, f"{index}.wav", noise(100)) for index in range(3)]
    computed = []

    def compute(clip):
        computed.append(clip.name)
        return np.full((2, 4), len(computed), np.float32)

    def entries(clips):
        found, bad = cached(clips, compute, tmp_path / "cache", settings="x", width=4, title="features")
        assert not bad
        return [read_entry(entry) for entry in found]

    first = entries(clips[:2])
    monkeypatch.setattr(cache_module.os, "access", lambda *_: False)
    both = entries(clips)
    assert_array_equal(both[:2], first)
    assert computed[2:] == ["2.wav"] and len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    assert_array_equal(entries(clips), both)  # within one command, they are kept
    assert len(computed) == 3
