"""A small size of the students past the paper: trained in two stages, kept, and not trained again."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import benchmarks.students
from benchmarks import past_page, past_paper
from benchmarks.past_paper import SIZES, first_student, students
from benchmarks.standard import read_cells
from benchmarks.students import train_students
from qkd_jax.commands.cli import run_command
from qkd_jax.config import DataConfig, FeatureConfig, LSTMConfig, QuantConfig, RunConfig, TrainConfig
from qkd_jax.data.clips import targets
from qkd_jax.data.logits import read_logits, write_logits
from qkd_jax.data.sources.demo import EVENTS, read_demo
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.folder import load_run

TAGGER = Path(benchmarks.students.__file__).parent / "yamnet.toml"
TINY = LSTMConfig(convolutions=(2, 2), time_strides=1, hidden_size=4, pooling="attention")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The settings, and what every student of the size `tiny` learned from and began with."""
    folder = tmp_path_factory.mktemp("past")
    data = DataConfig(source="demo", root=str(folder / "data"), clip_seconds=0.4, demo_clips=(16, 16, 20))
    clips = read_demo(data)
    config = RunConfig(
        runs=str(folder / "runs"),
        features=FeatureConfig(n_mels=8),
        data=dataclasses.replace(data, source="manifest", events=EVENTS),
        train=TrainConfig(batch_size=8, student_epochs=2),
    )
    tagger, known = folder / "tagger.npz", [clip for clip in clips if clip.split == "train"]
    write_logits(tagger, [clip.name for clip in known], EVENTS, 8 * targets(known, EVENTS) - 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past_paper, "SIZES", {"tiny": TINY})
        patch.setattr(past_paper, "BITS", (4,))
        start, logits = first_student(config, "tiny", tagger, 0)
        floating, four, mixed = students("tiny", start, logits, tagger)
    assert vars(mixed.settings.quant) == vars(four.settings.quant) | {"weights": 2}
    wanted = [floating, four]
    train_students(config, wanted, (0,))
    return config, wanted, tagger, start, logits


@pytest.mark.slow
def test_the_first_student_learns_longer_and_from_the_tagger_alone(made):
    _, _, tagger, start, _ = made
    run = load_run(Path(start).parent)
    assert run.config.distill.teachers == (str(tagger),)
    assert run.config.train.student_epochs == past_paper.FIRST_EPOCHS
    assert run.config.students == {"tiny-first": TINY}


@pytest.mark.slow
def test_the_others_go_on_from_it_taught_by_both(made):
    config, wanted, tagger, start, logits = made
    assert [student.name for student in wanted] == ["tiny", "tiny-4"]
    names = None
    for student in wanted:
        run = load_run(Path(config.runs) / f"{student.name}-seed0")
        settings = run.config.students[student.name]
        assert (settings.start, settings.learning_rate) == (start, 1e-3)
        assert run.config.train.student_epochs == 2
        names = [clip.name for clip in run.clips if clip.split == "train"]
        taught = np.stack([read_logits(file, names, EVENTS) for file in (logits, tagger)])
        np.testing.assert_array_equal(np.load(run.folder / "foreign.npy"), taught)
    # What the first one says, and not only what the tagger does.
    first = load_run(Path(start).parent)
    assert np.ptp(read_logits(logits, names, EVENTS)) > 0
    assert not np.allclose(*taught)
    assert first.folder.name == "tiny-first-seed0"


@pytest.mark.slow
def test_each_leaves_a_cell_and_the_one_in_float_is_scored_quantized_too(made):
    config, *_ = made
    cells = {name: seeds[0] for name, seeds in read_cells(Path(config.runs) / "cells").items()}
    assert sorted(cells) == ["tiny", "tiny-4", "tiny-pm2w4", "tiny-pm4"]
    run = load_run(Path(config.runs) / "tiny-seed0")
    variables = run.best_variables("tiny")
    for bits, name in ((32, "tiny"), (4, "tiny-pm4")):
        quant = QuantConfig() if bits == 32 else QuantConfig.per_channel(bits)
        model = build_model(dataclasses.replace(TINY, quant=quant), len(EVENTS))
        assert cells[name].bytes == model_cost(model, variables, run.shape, quant)["bytes"]
    assert cells["tiny-4"].bytes == cells["tiny-pm4"].bytes < cells["tiny"].bytes


@pytest.mark.slow
def test_what_is_kept_is_not_trained_again(made, monkeypatch):
    config, wanted, tagger, start, logits = made
    monkeypatch.setattr(benchmarks.students, "train", lambda config: pytest.fail("trained again"))
    monkeypatch.setattr(past_paper, "score_run", lambda *_, **__: pytest.fail("scored again"))
    monkeypatch.setattr(past_paper, "SIZES", {"tiny": TINY})
    assert first_student(config, "tiny", tagger, 0) == (start, logits)
    train_students(config, wanted, (0,))


def test_all_is_set_to_the_same_bits_and_4_of_them_are_small():
    for bits in past_paper.BITS:
        parts = vars(QuantConfig.per_channel(bits))
        assert {name: value for name, value in parts.items() if value != bits} == {
            "scheme": "paper",
            "cell": 16,
            "ranges": "channel",
        }
    for settings in SIZES.values():
        model = build_model(settings, 3)
        variables = jax.eval_shape(
            model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 998, 64), "float32")
        )
        assert model_cost(model, variables, (998, 64), QuantConfig.per_channel(4))["bytes"] < 182_000


def test_the_commands_say_what_they_lack(tmp_path, capsys):
    given = ["--data", str(tmp_path)]
    for main, arguments, said in (
        (past_paper.main, [], "--data: expected the folder of the recordings, got none"),
        (past_paper.main, given, "--tagger: expected a tagger's settings, got none"),
        (
            past_paper.main,
            [*given, "--tagger", str(TAGGER), "--only", "conv-1"],
            "--only: expected some of conv-128",
        ),
        (past_page.main, given, "--data: expected a table at"),
    ):
        assert run_command(main, arguments) == 2
        assert capsys.readouterr().err.startswith(f"error: {said}")
