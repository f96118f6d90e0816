"""An experiment of tiny cells: what is trained, kept, skipped, and trained again."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import qkd_jax
from benchmarks.common import RESULTS
from experiments import __main__ as command
from experiments.cells import Cell, Place, read_results
from experiments.driver import chosen, resolved, run_cell
from qkd_jax.commands.cli import run_command
from qkd_jax.config import (
    ClipRecipe,
    DemoData,
    DenseNetConfig,
    FeatureConfig,
    LSTMConfig,
    ManifestData,
    ModelConfig,
    QuantConfig,
    RunConfig,
)
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits
from qkd_jax.data.sources.demo import EVENTS, read_demo
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.folder import load_run

LSTM = LSTMConfig(hidden_size=6)
FEW = LSTMConfig(hidden_size=6, quant=QuantConfig.paper(4))


def cell(name, models, **fields):
    config = RunConfig(
        name=f"{name}-seed0",
        features=FeatureConfig(n_mels=8),
        data=ManifestData(events=EVENTS, clip_seconds=0.4),
        recipe=ClipRecipe(batch_size=8, epochs=1),
        models=models,
    )
    return Cell(name, config, **fields)


TEACHER = cell(
    "big", {"big": ModelConfig(network=DenseNetConfig(blocks=(1,), growth=4, stem=4), epochs=1)}, teaches=True
)
STUDENT = ModelConfig(network=LSTM, teachers=("big-seed0.npz",))
FURTHER = ModelConfig(network=FEW, teachers=STUDENT.teachers, start="small", learning_rate=1e-3)
CELLS = [
    TEACHER,
    cell("small", {"small": STUDENT, "small-4": FURTHER}, quantized={"small-pm4": ("small", FEW)}),
    cell("more", {"small": STUDENT, "small-again": FURTHER}, unkept=("small",)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a cell was trained; its teacher's own result is left out."""
    folder = tmp_path_factory.mktemp("driver")
    read_demo(DemoData(root=str(folder / "data"), clip_seconds=0.4, counts=(16, 16, 20)))
    place = Place(folder / "data", folder / "runs", folder / "cells", folder, "the command")
    run_cell(CELLS[1], place, CELLS)
    return place


def test_each_result_has_its_figures_and_logits(place):
    results = {name: parts["seed0"] for name, parts in read_results(place.cells).items()}
    assert sorted(results) == ["small", "small-4", "small-pm4"]
    run = load_run(place.runs / "small-seed0")
    test = load_split(run.config, run.clips, "test", run.cache)
    weights, others = (8 + 6) * 24, 24 + 6 * 3 + 3
    for name, network, size in (
        ("small", LSTM, 4 * (weights + others)),
        ("small-4", FEW, weights // 2 + 4 * others),
        ("small-pm4", FEW, weights // 2 + 4 * others),
    ):
        model = "small" if name == "small-pm4" else name
        variables = run.best_variables(model)
        expected = build_model(network, 3).apply(variables, jnp.stack(list(test.features)))
        path = place.path(name).with_suffix(".npz")
        np.testing.assert_allclose(read_logits(path, test.names, EVENTS), expected, rtol=2e-3, atol=2e-3)
        assert np.load(path)["logits"].dtype == np.float16
        result = results[name]
        metrics = evaluate(test.targets, np.asarray(expected), EVENTS)
        assert result.metrics["average"]["auc"] == pytest.approx(metrics["average"]["auc"], abs=1)
        assert (result.bytes, result.parameters, result.epochs) == (size, weights + others, 1)
        assert (result.training_clips, result.seed, result.command) == (16, 0, "the command")
        assert result.teachers == ["big-seed0.npz"] and result.best_epoch == 1
        assert result.machine and "jax" in result.versions
    assert results["small"].seconds > 0


def test_a_missing_teacher_is_trained_for_its_students_without_a_result_of_its_own(place):
    run = load_run(place.runs / "small-seed0")
    (teacher,) = run.config.models["small"].teachers
    assert teacher == str(place.cells / "big-seed0-train.npz")
    assert not place.path("big").exists()


def test_only_what_lacks_is_trained_with_what_that_needs(place):
    config = resolved(CELLS[1], ["small-pm4"], place, CELLS)
    assert list(config.models) == ["small"] and config.data.root == str(place.data)
    assert list(resolved(CELLS[1], ["small-4"], place, CELLS).models) == ["small", "small-4"]
    assert CELLS[2].results == ("small-again",)
    assert list(resolved(CELLS[2], CELLS[2].results, place, CELLS).models) == ["small", "small-again"]
    alone = dataclasses.replace(FURTHER, start=None)
    other = cell("other", {"small": STUDENT, "alone": alone})
    assert list(resolved(other, ["alone"], place, CELLS).models) == ["alone"]


def test_results_alone_are_enough_to_skip_their_cells(place, tmp_path, monkeypatch):
    monkeypatch.setattr(qkd_jax, "train", lambda config: pytest.fail("trained again"), raising=False)
    run_cell(CELLS[1], dataclasses.replace(place, runs=tmp_path), CELLS)
    assert not list(tmp_path.iterdir())


def test_a_lost_result_is_made_from_the_run(place, monkeypatch):
    monkeypatch.setattr(qkd_jax, "train", lambda config: pytest.fail("trained again"), raising=False)
    path = place.path("small-pm4")
    before = json.loads(path.read_text())
    path.unlink()
    run_cell(CELLS[1], place, CELLS)
    assert json.loads(path.read_text()) == before | {"seconds": None}  # unknown by now


def test_unknown_names_and_missing_files_are_refused(place, tmp_path, capsys):
    with pytest.raises(InputError, match="--cells: expected some of big, small, more, got 'tiny'"):
        chosen(CELLS, ["tiny"])
    assert [each.name for each in chosen(CELLS, ["more"])] == ["more"] and chosen(CELLS, []) == CELLS
    lacking = cell("tagged", {"tagged": ModelConfig(network=LSTM, teachers=("no.toml",))})
    with pytest.raises(InputError, match=r"--taggers: expected a folder with no.toml, found none in"):
        resolved(lacking, ["tagged"], place, CELLS)
    folders = f"--results {tmp_path} --runs {tmp_path}"
    assert run_command(command.main, f"paper {tmp_path} --cells plain-1 {folders}".split()) == 2
    assert capsys.readouterr().err.startswith("error: --cells: expected some of plain-256, distilled-256, ")
    with pytest.raises(SystemExit):
        command.main(["paper"])
    assert "expected the folder of the recordings" in capsys.readouterr().err


def test_the_names_of_an_experiments_results_are_unique():
    for experiment in command.EXPERIMENTS.values():
        names = [name for cell in experiment.cells(experiment.seeds[0]) for name in cell.results]
        assert names and len(names) == len(set(names))


@pytest.mark.parametrize(
    "name", ["sed", "readings", *(pytest.param(name, marks=pytest.mark.slow) for name in ("paper", "past"))]
)
def test_the_pages_are_those_of_the_committed_results(name, tmp_path):
    for path in (RESULTS / name / "cells").glob("*"):
        (tmp_path / name / "cells").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "cells" / path.name).symlink_to(path)
    page = (RESULTS / f"{name}.md").read_text()
    (tmp_path / f"{name}.md").write_text(page)
    command.write_page(name, tmp_path)
    assert (tmp_path / f"{name}.md").read_text() == page
