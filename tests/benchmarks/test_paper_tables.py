"""A small cell of the paper's tables: trained, scored quantized after it, tabled, and not trained again."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import paper_tables
from benchmarks.paper_tables import cells, gather, tables, train_cells, write_tables
from qkd_jax.command import run_command
from qkd_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    FeatureConfig,
    QuantConfig,
    StudentConfig,
    TrainConfig,
)
from qkd_jax.data.dataset import load_split
from qkd_jax.data.demo import EVENTS, read_demo
from qkd_jax.data.logits import read_logits, write_logits
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.models.build import build_model
from qkd_jax.train.folder import load_run

STUDENTS = {"distilled-6": StudentConfig(units=6), "plain-6": StudentConfig(units=6, distill=False)}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    data = DataConfig(source="demo", root=str(folder / "data"), clip_seconds=0.4, demo_clips=(16, 16, 20))
    names = [clip.name for clip in read_demo(data) if clip.split == "train"]
    logits = np.random.default_rng(0).normal(0, 2, (16, 3)).astype(np.float32)
    write_logits(folder / "teacher.npz", names, EVENTS, logits)
    config = Config(
        runs=str(folder / "runs"),
        features=FeatureConfig(n_mels=8),
        data=dataclasses.replace(data, source="manifest", events=EVENTS),
        distill=DistillConfig(teachers=(str(folder / "teacher.npz"),)),
        train=TrainConfig(batch_size=8, student_epochs=1),
    )
    assert list(train_cells(config, STUDENTS, (0,))) == ["distilled-6-seed0", "plain-6-seed0"]
    return config


def test_the_cells_are_those_of_the_paper():
    students = cells()
    assert len(students) == 1 + 3 * 3 + 2
    assert list(students)[:3] == ["plain-256", "distilled-256", "distilled-256-4"]
    assert students["plain-256"] == StudentConfig(distill=False)
    assert students["distilled-64-8"] == StudentConfig(units=64, quant=QuantConfig.paper(8))
    assert students["plain-3x256"] == StudentConfig(layers=3, distill=False)


def test_a_float_student_is_scored_quantized_after_training(base):
    run = load_run(Path(base.runs) / "distilled-6-seed0")
    data = load_split(run.config, run.clips, "test", run.cache)
    for bits in (8, 4):
        path = run.folder / "distilled-6" / f"logits-test-pm{bits}.npz"
        logits = read_logits(path, data.names, data.events)
        model = build_model(StudentConfig(units=6, quant=QuantConfig.paper(bits)), 3)
        expected = model.apply(run.best_variables("distilled-6"), jnp.stack(list(data.features)))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert not list((run.folder.parent / "plain-6-seed0").rglob("*pm*"))


def test_the_tables_hold_what_follows_from_the_logits(base):
    text = write_tables(base, STUDENTS, (0,))
    found = json.loads((Path(base.runs) / "tables.json").read_text())
    assert list(found) == ["distilled-6", "distilled-6-pm4", "distilled-6-pm8", "plain-6"]
    run = load_run(Path(base.runs) / "distilled-6-seed0")
    data = load_split(run.config, run.clips, "test", run.cache)
    for name, file in (("distilled-6", "logits-test"), ("distilled-6-pm4", "logits-test-pm4")):
        logits = read_logits(run.folder / "distilled-6" / f"{file}.npz", data.names, data.events)
        figures = evaluate(data.targets, logits, data.events)
        assert found[name]["seeds"]["0"] == figures
        assert f"{figures['average']['auc']:.2f} / {figures['average']['eer']:.2f}" in text
    assert found["distilled-6"]["bytes"] == 4 * ((8 + 6) * 24 + 24 + 6 * 3 + 3)
    (row,) = [line for line in text.splitlines() if line.startswith("| distilled |")]
    assert row.endswith("| 1 | 95.41 / 11.16 |")
    (row,) = [line for line in text.splitlines() if line.startswith("| distilled, 4 bits |")]
    assert row.count("–") == 5


def test_what_is_done_is_skipped(base, monkeypatch):
    monkeypatch.setattr(paper_tables, "train", lambda config: pytest.fail("trained again"))
    monkeypatch.setattr(paper_tables, "clip_logits", lambda *_: pytest.fail("scored again"))
    assert len(list(train_cells(base, STUDENTS, (0,)))) == 2


def test_several_seeds_are_a_mean_and_half_their_range():
    rows = {
        seed: {"average": {"auc": 80.0 + seed, "eer": 20.0}, "dog": {"auc": 70.0, "eer": 30.0 + 4 * seed}}
        for seed in (0, 1, 2)
    }
    found = {"plain-256": {"bytes": 12, "parameters": 3, "multiply_adds": 1, "seeds": rows}}
    (row,) = [line for line in tables(found).splitlines() if line.startswith("| LSTM, 1 layer |")]
    assert row.split(" | ")[1:] == [
        "81.00 ± 1.00 / 20.00 ± 0.00",
        "70.00 ± 0.00 / 34.00 ± 4.00",
        "12",
        "3",
        "92.10 / 15.08 |",
    ]
    assert gather(Config(runs="nowhere"), cells(), (0,)) == {}


def test_the_command_asks_for_its_data(capsys):
    assert run_command(paper_tables.main, []) == 2
    assert capsys.readouterr().err == "error: --data: expected the folder of the recordings, got none\n"
