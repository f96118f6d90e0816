"""Cross-validation: a final run per test fold, on folders of tones in noise."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile
from numpy.testing import assert_array_equal

from qkd_jax import cross_validate, score, train
from qkd_jax.commands.train import main
from qkd_jax.config import (
    ClipRecipe,
    FeatureConfig,
    LSTMConfig,
    ManifestData,
    ModelConfig,
    RunConfig,
)
from qkd_jax.evaluation.table import print_folds
from qkd_jax.run_folder.log import read_epochs
from tests.faults import refused

PITCHES = {"high": 3000, "low": 500}
RATE = 16_000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight clips per fold, of one event each."""
    folder, rng = tmp_path_factory.mktemp("folds"), np.random.default_rng(0)
    time, rows = np.arange(RATE // 2) / RATE, []
    for index in range(24):
        event = list(PITCHES)[index % 2]
        tone = 0.2 * np.sin(2 * np.pi * PITCHES[event] * time)
        soundfile.write(folder / f"{index}.wav", tone + rng.normal(0, 0.01, len(time)), RATE)
        rows.append([f"{index}.wav", event, index // 8 + 1])
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["filename", "labels", "fold"], *rows])
    return folder


def config_of(root, folder, **changes):
    data = {"root": str(root), "clip_seconds": 0.5, "folds": (1, 2, 3)} | changes
    return RunConfig(
        name="tones",
        runs=str(folder),
        features=FeatureConfig(n_mels=8),
        data=ManifestData(**data),
        recipe=ClipRecipe(batch_size=8, epochs=2, learning_rate=1e-2),
        models={"small": ModelConfig(network=LSTMConfig(hidden_size=4))},
    )


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    return cross_validate(config_of(root, tmp_path_factory.mktemp("runs")))


def test_each_fold_is_tested_by_a_run_on_all_others(runs):
    for fold, run in enumerate(runs, 1):
        assert run.folder.name == f"tones-fold{fold}" and run.config.data.folds == (fold,)
        first = 8 * (fold - 1)
        names = {clip.name for clip in run.clips if clip.split == "test"}
        assert names == {f"{index}.wav" for index in range(first, first + 8)}
        # 16 clips in batches of 8, twice: the validation fold is trained on.
        assert [record["step"] for record in read_epochs(run.model_folder("small"))] == [2, 4]
        with np.load(run.folder / "models" / "small" / "logits-test.npz") as kept:
            assert set(kept["names"].tolist()) == names


def test_the_last_state_is_kept(runs):
    """Also where an earlier epoch was better on validation: only the last has figures."""
    for run in runs:
        steps = sorted(int(path.name) for path in (run.model_folder("small") / "checkpoints").iterdir())
        figures = [
            (run.model_folder("small") / "checkpoints" / str(step) / "metrics").is_dir() for step in steps
        ]
        assert steps == [2, 4] and figures == [False, True]


def test_the_figures_are_means_and_deviations_over_folds(root, runs, capsys):
    """The same call again trains nothing."""
    again = cross_validate(config_of(root, runs[0].folder.parent))
    text = capsys.readouterr().out
    assert "epoch 1/2" not in text and "24 clips in 3 test folds" in text
    written = json.loads((runs[0].folder.parent / "tones-folds.json").read_text())
    assert written == {str(fold): run.results for fold, run in enumerate(runs, 1)}
    [line] = [line for line in text.splitlines() if line.strip().startswith("small") and "±" in line]
    for key in ("accuracy", "auc", "eer"):
        values = [run.results["models"]["small"]["metrics"]["average"][key] for run in runs]
        assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in line
    for one, other in zip(runs, again):
        jax.tree.map(assert_array_equal, one.best_variables("small"), other.best_variables("small"))


def test_faults_are_named_before_anything_trains(root, tmp_path):
    with refused(r"--data\.folds: expected some of 1, 2, 3, got 4"):
        cross_validate(config_of(root, tmp_path, folds=(1, 4)))
    with refused(r"--data\.folds: expected at least two, got 1"):
        cross_validate(config_of(root, tmp_path, folds=(1,)))
    with refused(r"--data\.folds: expected one fold, got several"):
        train(config_of(root, tmp_path))
    with pytest.raises(ValueError, match="folds: expected each fold once, got 1 1"):
        config_of(root, tmp_path, folds=(1, 1))
    with pytest.raises(ValueError, match="patience: expected none with final, got 3"):
        ClipRecipe(final=True, patience=3)
    with refused(r"--data\.folds: expected one fold for timed events, got 2"):
        arguments = ["desed", "--data.source", "manifest", "--data.folds", "1", "2", "--runs", str(tmp_path)]
        main(arguments, "train")
    assert not list(tmp_path.iterdir())


def test_a_fold_without_an_event_is_named_before_anything_trains(root, tmp_path):
    rows = [line.split(",") for line in (root / "metadata.csv").read_text().splitlines()]
    table = [",".join([row[0], "low" if row[2] == "3" else row[1], row[2]]) for row in rows]
    (root / "lacking.csv").write_text("\n".join(table))
    with refused(r"event 'high': expected positive and negative clips in split 'valid', found 0"):
        cross_validate(config_of(root, tmp_path, manifest="lacking.csv"))
    assert not list(tmp_path.iterdir())


def test_folds_that_differ_in_their_metrics_have_those_that_all_have(capsys):
    def of_fold(**more):
        metrics = {"average": {"auc": 90.0, "eer": 10.0, **more}, "events": {}}
        return {"clips": 5, "models": {"small": {"metrics": metrics, "bytes": 9}}}

    print_folds({"1": of_fold(accuracy=80.0), "2": of_fold()})
    text = capsys.readouterr().out
    assert "90.00 ± 0.00" in text and "accuracy" not in text and "EER of each fold" in text


def test_recordings_of_another_folder_need_no_folds(runs, root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    lines = ["filename,labels"]
    for index in range(4):
        (other / f"new-{index}.wav").write_bytes((root / f"{index}.wav").read_bytes())
        lines.append(f"new-{index}.wav,{list(PITCHES)[index % 2]}")
    (other / "metadata.csv").write_text("\n".join(lines))
    data = dataclasses.replace(runs[0].config.data, root=str(other))
    assert score(runs[0], data=data)["clips"] == 4
