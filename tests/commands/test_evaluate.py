"""The eval command: figures of training to the last digit, other splits, other recordings, faults."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qkd_jax import score
from qkd_jax.commands import evaluate as command
from qkd_jax.data.logits import read_logits
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.run_folder.folder import load_run
from tests.faults import refused, refused_in_one_line

ROOT = Path(__file__).parents[2]


def eval_(*arguments):
    command.main([str(argument) for argument in arguments], "qkd-jax eval")


@pytest.mark.slow
def test_eval_prints_the_figures_of_training_to_the_last_digit(finished, capsys):
    before = (finished / "results.json").read_text()
    assert score(finished) == score(load_run(finished)) == json.loads(before)
    capsys.readouterr()
    eval_(finished)
    assert (finished / "results.json").read_text() == before
    printed = capsys.readouterr().out
    for name, row in json.loads(before)["models"].items():
        line = next(line for line in printed.splitlines() if name in line)
        assert f"{row['metrics']['average']['auc']:.2f}" in line
        assert f"{row['metrics']['average']['eer']:.2f}" in line
        assert f"{row['bytes']:,}" in line


@pytest.mark.parametrize("path", ["four", "models/four"])
def test_eval_of_one_model_on_another_split(finished, capsys, path):
    eval_(finished / path, "--split", "valid")
    printed = capsys.readouterr().out
    assert "valid: 16 clips" in printed and "teacher" not in printed
    assert not (finished / "results-valid.json").exists()


@pytest.mark.parametrize("column", ["split", "part"])
def test_eval_on_other_recordings_of_the_same_layout(finished, tmp_path, capsys, column):
    shutil.copytree(finished / "data", tmp_path / "other")
    table = tmp_path / "other" / "metadata.csv"
    header, *rows = table.read_text().splitlines()
    kept = [row for row in rows if not row.startswith("audio/test-0000")]
    table.write_text("\n".join([header.replace("split", column), *kept]) + "\n")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    eval_(finished, "--data.root", tmp_path / "other", "--json", tmp_path / "figures.json")
    # With or without a split column, recordings that the models may have learned from are not scored.
    printed = capsys.readouterr().out
    own = f"{len(kept)} of {len(kept)} recordings share a name with a recording of the run and keep its split"
    assert own in printed
    assert "test: 10 clips" in printed
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert after == before
    # The figures follow from the kept logits of the clips that stayed.
    names = [row.split(",")[0] for row in kept if row.endswith(",test")]
    labels = {row.split(",")[0]: row.split(",")[1].split(";") for row in kept}
    events = load_run(finished).config.data.events
    targets = np.array([[event in labels[name] for event in events] for name in names], np.float32)
    logits = read_logits(finished / "models" / "four" / "logits-test.npz", names, events)
    figures = json.loads((tmp_path / "figures.json").read_text())["models"]["four"]["metrics"]
    assert figures == evaluate(targets, logits, events)


def test_eval_on_recordings_that_are_not_the_runs_scores_them_all(finished, tmp_path, capsys):
    shutil.copytree(finished / "data" / "audio", tmp_path / "other" / "clips")
    rows = (finished / "data" / "metadata.csv").read_text().splitlines()[1:]
    rows = [row.replace("audio/", "clips/").rpartition(",")[0] for row in rows]
    (tmp_path / "other" / "metadata.csv").write_text("\n".join(["filename,labels", *rows]) + "\n")
    eval_(finished, "--data.root", tmp_path / "other")
    printed = capsys.readouterr().out
    assert "test: 60 clips" in printed and "the run's own" not in printed


@pytest.mark.parametrize("arguments", [["--data.root", "tiny/data"], ["--data.skip-bad"], []])
def test_eval_on_the_runs_own_recordings_spelled_differently(finished, capsys, monkeypatch, arguments):
    monkeypatch.chdir(finished.parent)
    before = (finished / "results.json").stat().st_mtime_ns
    eval_(finished, *arguments)
    assert "test: 20 clips" in capsys.readouterr().out
    assert (finished / "results.json").stat().st_mtime_ns > before


def test_faults_of_scoring(finished, tmp_path):
    run = load_run(finished)
    with refused(r"expected a model of the run \(teacher, plain, four\), got 'five'"):
        score(run, model="five")
    with refused("expected clips in split 'tset', found none"):
        score(run, split="tset")
    with refused(r"expected a run's folder, with a config\.json"):
        load_run(tmp_path)
    with refused(r"--data\.events: expected .*, as in the run, got \('dog',\)"):
        eval_(finished, "--data.root", tmp_path, "--data.events", "dog")
    (tmp_path / "begun").mkdir()
    shutil.copy(finished / "config.json", tmp_path / "begun")
    with refused("expected checkpoints, found none; qkd-jax train resumes the run"):
        score(tmp_path / "begun")
    (tmp_path / "config.json").write_text('{"name": "old", "students": {}, "train": {"seed": 0}}')
    with refused_in_one_line(r"this run is from before version 0\.2"):
        load_run(tmp_path)


def test_a_checkpoint_of_other_settings_is_refused_in_one_line(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 4', '"hidden_size": 5'))
    command = [sys.executable, str(ROOT / "eval.py"), str(tmp_path / "run" / "plain")]
    error = subprocess.run(command, capture_output=True, text=True, timeout=300).stderr
    assert error.count("\n") == 1
    place, shapes = r".*/plain/checkpoints/\d", r"params\.lstm\.0\.b float32\[20\], found float32\[16\]"
    assert re.match(rf"error: {place}: expected a checkpoint of this model, with {shapes}", error)
