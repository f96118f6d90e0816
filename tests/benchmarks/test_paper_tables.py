"""Small cells of the paper's tables: trained, scored quantized after it, kept, and not trained again."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmarks.students
from benchmarks import paper_tables
from benchmarks.paper_tables import _distilled, _quantized, students, train_teacher
from benchmarks.standard import cell_path, read_cells
from benchmarks.students import Student, train_students
from qkd_jax.commands.cli import run_command
from qkd_jax.config import (
    DataConfig,
    FeatureConfig,
    LSTMConfig,
    QuantConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
)
from qkd_jax.data.clips import SPLITS
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits
from qkd_jax.data.sources.demo import EVENTS, read_demo
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.checkpoints import open_checkpoints
from qkd_jax.run_folder.folder import load_run
from qkd_jax.run_folder.log import read_log


def two_students(base):
    """One distilled, one plain."""
    teachers = (cell_path(Path(base.runs) / "cells", "teacher", 0).with_suffix(".npz"),)
    return [_distilled(6, teachers), Student("plain-6", LSTMConfig(hidden_size=6, distill=False), teachers)]


NAMES = ["distilled-6", "distilled-6-pm4", "distilled-6-pm8", "plain-6", "teacher"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    data = DataConfig(source="demo", root=str(folder / "data"), clip_seconds=0.4, demo_clips=(16, 16, 20))
    read_demo(data)
    config = RunConfig(
        runs=str(folder / "runs"),
        features=FeatureConfig(n_mels=8),
        data=dataclasses.replace(data, source="manifest", events=EVENTS),
        teacher=TeacherConfig(blocks=(1,), growth=4, stem=4),
        train=TrainConfig(batch_size=8, student_epochs=2, teacher_epochs=1),
    )
    teacher = cell_path(folder / "runs/cells", "teacher", 0)
    train_teacher(config, teacher)
    train_students(config, two_students(config), (0,))
    return config


def split_of(base, run_name, split):
    run = load_run(Path(base.runs) / run_name)
    return run, load_split(run.config, run.clips, split, run.cache)


def kept_logits(base, name, data):
    path = cell_path(Path(base.runs) / "cells", name, 0).with_suffix(".npz")
    return read_logits(path, data.names, data.events)


def test_the_students_are_those_of_the_paper():
    teacher = Path("logits.npz")
    found = {student.name: student for student in students(teacher)}
    assert len(found) == 1 + 3 * 3 + 1 + 2 + 1
    assert list(found)[:3] == ["plain-256", "distilled-256", "distilled-256-4"]
    assert found["plain-256"].settings == LSTMConfig(distill=False)
    eight = LSTMConfig(hidden_size=64, quant=QuantConfig.paper(8), learning_rate=1e-3)
    assert found["distilled-64-8"] == Student(
        "distilled-64-8", eight, (teacher,), first=found["distilled-64"]
    )
    integer = LSTMConfig(quant=QuantConfig.integer(4), learning_rate=1e-3)
    assert found["distilled-256-integer-4"].settings == integer
    assert found["plain-3x256"].settings == LSTMConfig(layers=3, distill=False)
    assert {cell for student in found.values() for cell in student.also} == {
        f"distilled-{units}-pm{bits}" for units in (256, 128, 64) for bits in (8, 4)
    }


@pytest.mark.slow
def test_each_model_leaves_a_cell_and_a_float_student_is_scored_quantized_too(base):
    assert sorted(read_cells(Path(base.runs) / "cells")) == NAMES
    for name, bits in (("distilled-6", 32), ("distilled-6-pm8", 8), ("distilled-6-pm4", 4)):
        run, data = split_of(base, "distilled-6-seed0", "test")
        quant = QuantConfig() if bits == 32 else QuantConfig.paper(bits)
        model = build_model(LSTMConfig(hidden_size=6, quant=quant), 3)
        expected = model.apply(run.best_variables("distilled-6"), jnp.stack(list(data.features)))
        np.testing.assert_allclose(kept_logits(base, name, data), expected, rtol=1e-4, atol=1e-4)


def test_a_cell_says_what_its_model_is(base):
    cells = {name: seeds[0] for name, seeds in read_cells(Path(base.runs) / "cells").items()}
    weights, others = (8 + 6) * 24, 24 + 6 * 3 + 3
    for name, cell in cells.items():
        run = name if name == "teacher" else f"{name.split('-pm')[0]}-seed0"
        folder = Path(base.runs) / run / name.split("-pm")[0]
        with open_checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            step = checkpoints.best_step()
        (best,) = [record for record in read_log(folder) if record["step"] == step and "epoch" in record]
        assert (cell.valid, cell.best_epoch) == (best["valid"], best["epoch"])
        assert cell.epochs == (1 if name == "teacher" else 2)
        assert cell.scenes == 16
        assert cell.teacher == ("teacher-seed0.npz" if name.startswith("distilled") else "")
        assert cell.seconds > 0
        _, data = split_of(base, run, "test")
        assert cell.metrics == evaluate(data.targets, kept_logits(base, name, data), EVENTS)
    assert cells["distilled-6"].parameters == cells["distilled-6-pm4"].parameters == weights + others
    assert cells["distilled-6"].bytes == cells["plain-6"].bytes == 4 * (weights + others)
    assert cells["distilled-6-pm8"].bytes == weights + 4 * others
    assert cells["distilled-6-pm4"].bytes == weights // 2 + 4 * others


def test_the_teachers_cell_has_its_logits_on_all_scenes(base):
    for split in SPLITS:
        run, data = split_of(base, "teacher", split)
        variables = run.best_variables("teacher")
        expected = run.model("teacher").apply(variables, jnp.stack(list(data.features)))
        np.testing.assert_allclose(kept_logits(base, "teacher", data), expected, rtol=1e-4, atol=1e-4)
    (cell,) = read_cells(Path(base.runs) / "cells")["teacher"].values()
    assert cell.bytes == 4 * sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_cells_alone_are_enough_to_skip_their_training(base, tmp_path, monkeypatch):
    shutil.copytree(Path(base.runs) / "cells", tmp_path / "cells")
    monkeypatch.setattr(benchmarks.students, "train", lambda config: pytest.fail("trained again"))
    train_students(dataclasses.replace(base, runs=str(tmp_path)), two_students(base), (0,))
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_what_a_kill_left_out_is_made_from_the_run(base, capsys):
    cells = Path(base.runs) / "cells"
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in cells.iterdir()}
    lost = cell_path(cells, "distilled-6-pm4", 0)
    lost.unlink()
    train_students(base, two_students(base), (0,))
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in cells.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {lost.name, lost.with_suffix(".npz").name}
    was, now = (json.loads(files[lost.name][0]) for files in (before, after))
    assert now == was | {"seconds": None}  # they are not known any more
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_quantized_student_goes_on_from_the_float_one(base, tmp_path):
    quantized = _quantized(two_students(base)[0], 4)
    copy = dataclasses.replace(base, runs=str(tmp_path / "runs"))
    shutil.copytree(Path(base.runs) / "cells", tmp_path / "runs/cells")  # without the float student's run
    train_students(copy, [quantized], (0,))
    run = load_run(tmp_path / "runs/distilled-6-4-seed0")
    assert run.config.students["distilled-6-4"].start == f"{copy.runs}/distilled-6-seed0/distilled-6"
    before, after = (
        load_run(Path(folder) / "distilled-6-seed0").best_variables("distilled-6")
        for folder in (base.runs, copy.runs)
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert read_cells(tmp_path / "runs/cells")["distilled-6-4"][0].epochs == 2


def test_it_says_what_is_left_and_how_long_it_may_take(base, tmp_path, monkeypatch, capsys):
    wanted = [
        Student(f"plain-{units}", LSTMConfig(units=units, distill=False), (Path("t"),)) for units in (24, 8)
    ]
    clock = [0.0]

    def pretend(config, name, cells):
        units = config.students[name].units
        clock[0] += 60 * units * (units + 8) / 64  # as the work is
        assert config.train.seed == int(config.name[-1])

    monkeypatch.setattr(benchmarks.students, "train_and_keep", pretend)
    monkeypatch.setattr(benchmarks.students.time, "monotonic", lambda: clock[0])
    copy = dataclasses.replace(base, runs=str(tmp_path))
    train_students(copy, wanted, (0, 1))
    assert capsys.readouterr().out.split("\n\n") == [
        "\nplain-24-seed0: 4 left",
        "plain-8-seed0: 3 left, at most 16 minutes left",
        "plain-24-seed1: 2 left, at most 14 minutes left",
        "plain-8-seed1: 1 left, at most 2 minutes left\n",
    ]
    # What is kept tells how long the rest may take: 14 minutes' work at 3 seconds a minute.
    cells = tmp_path / "cells"
    shutil.copytree(Path(base.runs) / "cells", cells)
    cell = json.loads((cells / "plain-6-seed0.json").read_text()) | {"seconds": 6.0}
    (cells / "plain-8-seed0.json").write_text(json.dumps(cell))
    train_students(copy, wanted, (0,))
    assert capsys.readouterr().out == "\nplain-24-seed0: 1 left, at most 1 minutes left\n"


def test_what_is_asked_for_in_vain_shows_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paper_tables, "train_teacher", lambda *_: pytest.fail("trained"))
    given = ["--data", str(tmp_path), "--out", str(tmp_path)]
    for arguments, said in (
        (["--only", "plain-1"], "error: --only: expected some of plain-256, distilled-256, "),
        (
            ["--tagger", str(tmp_path / "no.toml")],
            f"error: {tmp_path / 'no.toml'}: expected a tagger's settings",
        ),
    ):
        assert run_command(paper_tables.main, given + arguments) == 2
        assert capsys.readouterr().err.startswith(said)


def test_the_command_asks_for_its_data(capsys):
    assert run_command(paper_tables.main, []) == 2
    assert capsys.readouterr().err == "error: --data: expected the folder of the recordings, got none\n"
