"""The runs of the sister papers' comparisons, and their tables from made-up results."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments import sed
from experiments.cells import Cell, Place, Result, read_results
from experiments.driver import run_cell
from experiments.sed import DUAL, FIGURES, MULTI, SEVERAL, cells, tables
from qkd_jax.config import ModelConfig, QuantConfig
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.folder import load_run
from tests.experiments.results import row
from tests.tones import PITCHES, config_of, write_tones


def parameters(cell):
    config, network = cell.config, cell.config.models[cell.name].network
    shape = (1, config.frames, config.features.n_mels)
    model = build_model(network, 3)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_the_models_have_the_sizes_that_the_papers_compare():
    every = {cell.name: cell for cell in cells(0)}
    size = {name: parameters(every[name]) for name in ("baseline", "third", "tiny", *SEVERAL)}
    assert 0.3 < size["third"] / size["baseline"] < 0.36
    assert sum(size[name] for name in SEVERAL) / size["tiny"] > 50
    assert {*DUAL, *MULTI} - {"fusion"} == every.keys()


def result(psds1, size, batch=(4, 4, 4)):
    average = dict.fromkeys(FIGURES, 50.0) | {"psds1": psds1}
    events = {"dog": {"psds1": psds1 + 1}, "baby_cry": {"psds1": psds1 + 2}, "gunshot": {"psds1": 1.0}}
    valid = {"psds1": psds1 + 5, "psds2": 60.0, "auc": 90.0}
    metrics = {"average": average, "events": events}
    return Result(metrics=metrics, parameters=size, bytes=4 * size, batch=list(batch), valid=valid)


def test_the_tables_state_what_is_there_and_what_is_not():
    results = {name: {"seed0": result(30.0, size)} for name, size in zip(SEVERAL, (4000, 5000, 6000))}
    results |= {
        "tiny": {"seed0": result(20.0, 250)},
        "tiny-fused": {"seed0": result(24.0, 250), "seed1": result(26.0, 250)},
        "tiny-fused-32": {"seed0": result(25.0, 250)},
        "tiny-fused-4": {"seed0": result(22.5, 50)},
    }
    found = tables(results)
    assert row(found["several"], "tiny-fused")[2:4] == ["25.00 ± 1.00", "50.00 ± 0.00"]
    assert row(found["bits"], "tiny-fused-4")[-1] == "10 %"
    # PSDS1, PSDS2 and AUC on validation, then PSDS1 of each event.
    figures = ["30.00 ± 1.00", "60.00 ± 0.00", "90.00 ± 0.00", "26.00 ± 1.00", "27.00 ± 1.00", "1.00 ± 0.00"]
    assert row(found["behind"], "tiny-fused") == figures
    average = "tiny-fused is no worse than its teachers' average in PSDS1 and PSDS2"
    assert row(found["goals"], average) == ["25.00 / 50.00", "30.00 / 50.00", "missed"]
    few = row(found["goals"], "tiny-fused at 4 bits loses at most 6 % of PSDS1")
    assert few == ["22.50", "25.00", "missed"]
    lines = found["goals"].splitlines()[2:]
    assert sum("not trained yet" not in line for line in lines) == 2 and len(lines) > 2
    teachers = ", ".join(SEVERAL)
    assert row(found["ratios"], "tiny-fused-4") == ["200", teachers, "80.0, 100.0, 120.0", "300"]
    assert row(found["ratios"], "tiny") == ["1,000", teachers, "16.0, 20.0, 24.0", "60"]
    assert "Not trained yet: `teacher-se`, `third`" in found["dual"]
    assert "Not trained yet: `fusion`, `tiny-one`" in found["several"]


def test_results_of_other_batches_are_refused():
    results = {"old": {"seed0": result(10.0, 9, (8, 8, 8))}, "new": {"seed0": result(10.0, 9)}}
    with pytest.raises(InputError, match=r"one size of batches, found \[\(4, 4, 4\), \(8, 8, 8\)\]"):
        tables(results)


@pytest.mark.slow
def test_students_learn_from_teachers_of_other_cells_and_the_fusion_is_scored(tmp_path, monkeypatch):
    pytest.importorskip("sed_scores_eval", reason="pip install -e '.[sed]'")
    write_tones(tmp_path / "tones")
    base = config_of(tmp_path / "tones", tmp_path / "runs")
    base = dataclasses.replace(base, recipe=dataclasses.replace(base.recipe, epochs=2))
    crnn = ModelConfig(network=base.models["first"].network)

    def cell(name, **models):
        return Cell(name, dataclasses.replace(base, name=f"{name}-seed0", models=models), teaches=True)

    student = dataclasses.replace(crnn, teachers=("one-seed0.npz", "two-seed0.npz"))
    few = dataclasses.replace(crnn.network, quant=QuantConfig.per_channel(8))
    quantized = dataclasses.replace(student, network=few, start="student", epochs=1)
    cells = [
        cell("one", one=crnn),
        cell("two", two=crnn),
        cell("student", **{"student": student, "student-8": quantized}),
    ]
    place = Place(tmp_path / "tones", tmp_path / "runs", tmp_path / "cells", tmp_path, "command")
    run_cell(cells[2], place, cells)
    results = read_results(place.cells)
    assert set(results) == {"student", "student-8"}  # the teachers have trained, without results
    few = results["student-8"]["seed0"]
    assert few.epochs == 1 and few.batch == [8, 4, 4] and few.metrics["average"]["psds1"] >= 0
    monkeypatch.setattr(sed, "SEVERAL", ("one", "two"))
    monkeypatch.setattr(sed, "EVENTS", tuple(PITCHES))
    monkeypatch.setattr("qkd_jax.train", lambda config: pytest.fail("trained again"), raising=False)
    sed.score_fusion(place, cells)
    fusion = read_results(place.cells)["fusion"]["seed0"]
    models = [load_run(place.runs / f"{name}-seed0").results["models"][name] for name in ("one", "two")]
    assert fusion.bytes == sum(model["bytes"] for model in models)
    assert fusion.metrics["events"].keys() == set(PITCHES)
