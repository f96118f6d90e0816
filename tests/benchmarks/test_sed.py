"""The comparisons of the sister papers: which models they are, and the page of what they came to."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import sed_page, sed_tables
from benchmarks.sed_page import DUAL, FIGURES, MULTI, page, read_cells
from benchmarks.sed_tables import SE_TEACHER, SEVERAL, Model, Settings, models, sed_config
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from tests.tones import PITCHES, config_of, write_tones


def parameters(network, config):
    model = build_model(network, 3)
    shape = (1, config.frames, config.features.n_mels)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("small", [True, False])
def test_the_models_have_the_sizes_that_the_papers_compare(small, tmp_path):
    config = sed_config(Settings(data=str(tmp_path), small=small), 0)
    found = {model.name: model for model in models(small, "tagger.toml")}
    size = {
        name: parameters(found[name].settings.network, config)
        for name in ("baseline", "third", "tiny", *SEVERAL)
    }
    assert 0.3 < size["third"] / size["baseline"] < 0.36
    assert sum(size[name] for name in SEVERAL) / size["tiny"] > 50
    assert {*DUAL, *MULTI} - {"fusion"} == found.keys()


def test_a_model_comes_behind_those_that_teach_it(tmp_path):
    seen = []
    for model in models(True, "tagger.toml"):
        assert set(model.teachers) <= set(seen)
        settings = model.all_settings(tmp_path, 3, 5)
        assert all(
            str(tmp_path / f"{name}-seed3.npz") in settings[model.name].teachers for name in model.teachers
        )
        for bits in model.quantized:
            quantized = settings[f"{model.name}-{bits}"]
            assert (quantized.start, quantized.epochs, quantized.network.quant.weights) == (
                model.name,
                5,
                bits,
            )
            control = settings[f"{model.name}-32"]
            assert control == dataclasses.replace(quantized, network=settings[model.name].network)
            assert quantized.teachers == settings[model.name].teachers
        seen.append(model.name)
    assert SE_TEACHER in seen
    assert not any("eefd" in model.name or "both" in model.name for model in models(True, ""))


@pytest.mark.slow
def test_what_is_trained_is_kept_and_not_trained_again(tmp_path, monkeypatch):
    pytest.importorskip("sed_scores_eval", reason="pip install -e '.[sed]'")
    write_tones(tmp_path / "tones")
    base = config_of(tmp_path / "tones", tmp_path / "out")
    base = dataclasses.replace(base, train=dataclasses.replace(base.train, epochs=3))
    teacher, student = base.models["first"], dataclasses.replace(base.models["lstm"], through="student")
    chosen = [Model("one", teacher), Model("two", teacher), Model("student", student, ("one", "two"), (8,))]
    monkeypatch.setattr(sed_tables, "models", lambda small, tagger: chosen)
    monkeypatch.setattr(sed_tables, "sed_config", lambda settings, seed: base)
    monkeypatch.setattr(sed_tables, "SEVERAL", ("one", "two"))
    monkeypatch.setattr(sed_tables, "EVENTS", tuple(PITCHES))
    cells = tmp_path / "out" / "cells"
    sed_tables.main(["--data", "DIR", "--small", "--only", "two"])
    assert {path.name for path in cells.iterdir()} == {"two-seed0.json", "two-seed0.npz"}
    sed_tables.main(["--data", "DIR", "--small"])
    names = {"one", "two", "fusion", "student", "student-32", "student-8"}
    assert {path.stem for path in cells.glob("*.json")} == {f"{name}-seed0" for name in names}
    kept = json.loads((cells / "student-8-seed0.json").read_text())
    results = json.loads((tmp_path / "out/student-seed0/results.json").read_text())["models"]["student-8"]
    assert results.items() <= kept.items() and kept["epochs"] == 1 and kept["clips"] == [8, 4, 4]
    monkeypatch.setattr(sed_tables, "train_sed", lambda config: pytest.fail("trained again"))
    sed_tables.main(["--data", "DIR", "--small"])
    with pytest.raises(InputError, match="--only: expected some of one, two, student, got 'three'"):
        sed_tables.main(["--data", "DIR", "--small", "--only", "three"])


def write_cell(folder, name, psds1, seed=0, size=1000):
    average = {key: 50.0 for key in FIGURES} | {"psds1": psds1}
    events = {"dog": {"psds1": psds1 + 1}, "baby_cry": {"psds1": psds1 + 2}, "gunshot": {"psds1": 1.0}}
    cell = {"metrics": {"average": average, **events}, "parameters": size, "bytes": 4 * size}
    cell["clips"] = [4, 4, 4]
    cell["valid"] = {"psds1": psds1 + 5, "psds2": 60.0, "auc": 90.0}
    (folder / f"{name}-seed{seed}.json").write_text(json.dumps(cell))


def test_the_page_is_that_of_the_cells():
    folder = Path(sed_page.__file__).parents[1] / "docs/results/sed"
    assert (folder / "tables.md").read_text() == page(read_cells(folder / "cells"))


def test_the_page_says_what_is_there_and_what_is_not(tmp_path):
    with pytest.raises(InputError, match=r"--cells: expected cells in .*, found none"):
        read_cells(tmp_path)
    write_cell(tmp_path, "old", 10.0)
    old = tmp_path / "old-seed0.json"
    old.write_text(old.read_text().replace("[4, 4, 4]", "[8, 8, 8]"))
    for name, size in zip(SEVERAL, (4000, 5000, 6000)):
        write_cell(tmp_path, name, 30.0, size=size)
    write_cell(tmp_path, "tiny", 20.0, size=250)
    write_cell(tmp_path, "tiny-fused", 24.0, size=250)
    write_cell(tmp_path, "tiny-fused", 26.0, seed=1, size=250)
    write_cell(tmp_path, "tiny-fused-32", 25.0, size=250)
    write_cell(tmp_path, "tiny-fused-4", 22.5, size=50)
    with pytest.raises(InputError, match=r"one size of batches in .*, found \[\(4, 4, 4\), \(8, 8, 8\)\]"):
        read_cells(tmp_path)
    old.unlink()
    text = page(read_cells(tmp_path))
    tables, _, rest = text.partition("## How much smaller")
    smaller, _, rest = rest.partition("## What was aimed at")
    goals, _, behind = rest.partition("## Behind the averages")
    rows, smaller, aims, behind = (
        {line.split(" | ")[0].strip("| "): line for line in part.splitlines() if line.startswith("|")}
        for part in (tables, smaller, goals, behind)
    )
    assert "| 25.00 ± 1.00 | 50.00" in rows["tiny-fused"]
    assert rows["tiny-fused-4"].endswith("| 10 % |")
    # On validation PSDS1, PSDS2, AUC, then PSDS1 of each event.
    figures = "30.00 ± 1.00 | 60.00 ± 0.00 | 90.00 ± 0.00 | 26.00 ± 1.00 | 27.00 ± 1.00 | 1.00 ± 0.00"
    assert behind["tiny-fused"] == f"| tiny-fused | {figures} |"
    average = next(line for aim, line in aims.items() if "teachers' average" in aim)
    assert average.endswith("| 25.00 / 50.00 | 30.00 / 50.00 | missed |")
    assert aims["tiny-fused at 4 bits loses at most 6 % of PSDS1"].endswith("| 22.50 | 25.00 | missed |")
    assert sum("not trained yet" not in line for line in aims.values()) == 4  # the head, its line, two aims
    teachers = ", ".join(SEVERAL)
    assert smaller["tiny-fused-4"] == f"| tiny-fused-4 | 200 | {teachers} | 80.0, 100.0, 120.0 | 300 |"
    assert smaller["tiny"] == f"| tiny | 1,000 | {teachers} | 16.0, 20.0, 24.0 | 60 |"
    assert (
        "Not trained yet: `teacher-se`, `third`" in text and "Not trained yet: `fusion`, `tiny-one`" in text
    )
