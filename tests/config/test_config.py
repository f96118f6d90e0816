"""Settings: checked when made, one line for each mistake, the same through JSON and the command line."""

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from qkd_jax.commands.cli import load_preset
from qkd_jax.config import (
    DataConfig,
    FeatureConfig,
    LSTMConfig,
    QuantConfig,
    RunConfig,
    TrainConfig,
    from_json,
    to_json,
)
from qkd_jax.errors import InputError, explain

PRESETS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", [path.stem for path in PRESETS.glob("*.py")])
def test_presets_survive_json(name):
    config = load_preset(name, PRESETS)
    assert from_json(type(config), to_json(config), "here") == config


def test_paper_preset_has_the_papers_sizes():
    config = load_preset("paper", PRESETS)
    assert (config.frames, config.features.n_mels) == (998, 64)
    assert config.teacher.blocks == (3, 6, 12, 8)
    assert config.students["distilled-4"] == LSTMConfig(
        hidden_size=256,
        quant=QuantConfig(weights=4, activations=4, gates=4, cell=16),
        start="distilled",
        learning_rate=1e-3,
    )
    assert (config.train.batch_size, LSTMConfig().learning_rate) == (32, 3e-3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainConfig(batch_size=0), "batch_size: Input should be greater than or equal to 1, got 0"),
        (lambda: TrainConfig(batch_size=2.0), "batch_size: Input should be a valid integer, got 2.0"),
        (lambda: TrainConfig(seed=True), "seed: Input should be a valid integer, got True"),
        (
            lambda: TrainConfig(teacher_learning_rate="fast"),
            "teacher_learning_rate: Input should be a valid number, got 'fast'",
        ),
        (lambda: TrainConfig(sed=1), "sed: Unexpected keyword argument, got 1"),
        (lambda: QuantConfig(weights=17), "weights: bits: expected 2 to 16, or 32 for off, got 17"),
        (lambda: QuantConfig(output=1), "output: bits: expected 2 to 16, or 32 for off, got 1"),
        (
            lambda: QuantConfig(ranges="both"),
            "ranges: Input should be 'joint', 'split' or 'channel', got 'both'",
        ),
        (lambda: QuantConfig(scheme="float"), "scheme: Input should be 'paper' or 'integer', got 'float'"),
        *(
            (
                make,
                "scheme: integer takes weights, activations, output of at most 8 bits, gates and cell of 16, "
                f"got {got}",
            )
            for make, got in (
                (lambda: QuantConfig(scheme="integer", ranges="channel"), "32, 32, 32, 32, 32"),
                (lambda: QuantConfig.integer(9), "9, 8, 8, 16, 16"),
                (lambda: QuantConfig.integer(4, activations=12), "4, 12, 8, 16, 16"),
                (lambda: dataclasses.replace(QuantConfig.integer(4), output=32), "4, 8, 32, 16, 16"),
                (lambda: dataclasses.replace(QuantConfig.integer(4), gates=8), "4, 8, 8, 8, 16"),
                (lambda: dataclasses.replace(QuantConfig.integer(4), cell=32), "4, 8, 8, 16, 32"),
            )
        ),
        (
            lambda: dataclasses.replace(QuantConfig.integer(4), ranges="joint"),
            "ranges: integer has those of channels, got joint",
        ),
        *(
            (
                lambda first=first, start=start: RunConfig(
                    students={
                        "first": LSTMConfig(quant=first),
                        "s": LSTMConfig(quant=QuantConfig.integer(8), start=start),
                    }
                ),
                "students.s.start: expected a float student, from which the integer scheme goes on, "
                f"got {start!r}",
            )
            for first, start in ((QuantConfig(), None), (QuantConfig.paper(4), "first"))
        ),
        (
            lambda: LSTMConfig(convolutions=(16, 0)),
            "convolutions.1: Input should be greater than or equal to 1, got 0",
        ),
        (
            lambda: LSTMConfig(convolutions=(16, 32), time_strides=3),
            "time_strides: expected at most one for each of 2 convolutions, got 3",
        ),
        (lambda: FeatureConfig(win_length=600), "win_length: expected at most n_fft = 512, got 600"),
        (
            lambda: FeatureConfig(sample_rate=8000),
            "fmin, fmax: expected fmin < fmax <= sample_rate / 2 = 4000 Hz, got 50 and 8000",
        ),
        (lambda: RunConfig(name="../up"), "name: String should match pattern"),
        (
            lambda: RunConfig(students={"a/b": LSTMConfig()}),
            "students.a/b.[key]: String should match pattern",
        ),
        (lambda: RunConfig(students={"data": LSTMConfig()}), "students: 'data' is a folder of every run"),
        *(
            (
                lambda students=students: RunConfig(students=students),
                "students.b.start: expected an earlier student with its convolutions, time_strides, layers, "
                "units and pooling, or RUN/STUDENT, got 'a'",
            )
            for students in (
                {"b": LSTMConfig(start="a")},
                {"b": LSTMConfig(start="a"), "a": LSTMConfig()},
                {"a": LSTMConfig(hidden_size=8), "b": LSTMConfig(start="a")},
                {"a": LSTMConfig(pooling="mean"), "b": LSTMConfig(start="a")},
                {"a": LSTMConfig(convolutions=(4,)), "b": LSTMConfig(start="a")},
                {
                    "a": LSTMConfig(convolutions=(4,)),
                    "b": LSTMConfig(convolutions=(4,), time_strides=1, start="a"),
                },
            )
        ),
        *(
            (
                lambda student=student: RunConfig(students={"s": student}),
                "students.s.convolutions: expected fewer, or fewer time_strides: nothing is left of 998 frames",
            )
            for student in (
                LSTMConfig(convolutions=(1,) * 9, time_strides=9),
                LSTMConfig(convolutions=(1,) * 499),
            )
        ),
        (lambda: RunConfig(data=DataConfig(clip_seconds=0.01)), "data.clip_seconds: 0.01 s is shorter"),
        (
            lambda: RunConfig(students={"teacher": LSTMConfig()}),
            "students: 'teacher' is a folder of every run",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(make, said):
    with pytest.raises(ValidationError) as caught:
        make()
    assert explain(caught.value).startswith(said)
    assert "\n" not in explain(caught.value)


def test_convolutions_that_leave_a_step_of_the_clip_are_taken():
    # 998 frames halved, each time without the last or the last two: 498, 248, 123, 61, 30, 14, 6, 2.
    for student in (LSTMConfig(convolutions=(1,) * 8, time_strides=8), LSTMConfig(convolutions=(1,) * 498)):
        assert RunConfig(students={"s": student}).students["s"].steps(998) == 2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_students_go_on_from_another(bits):
    quant = QuantConfig.integer(bits, activations=bits)
    for start in ("first", "runs/other/student"):
        students = {"first": LSTMConfig(), "integer": LSTMConfig(quant=quant, start=start)}
        assert RunConfig(students=students).students["integer"].quant == QuantConfig(
            scheme="integer", weights=bits, activations=bits, gates=16, cell=16, output=8, ranges="channel"
        )


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantConfig().weights = 4


@pytest.mark.parametrize("seconds", [0.025, 0.035, 1.0, 10.0])
def test_frames_are_counted_without_padding(seconds):
    samples = round(seconds * 16000)
    whole = [start for start in range(0, samples, 160) if start + 400 <= samples]
    assert FeatureConfig().frames(samples) == len(whole)


def test_json_errors_name_file_and_field():
    with pytest.raises(InputError, match=r"run/config.json: train\.seed: .*got 'x'"):
        from_json(RunConfig, '{"train": {"seed": "x"}}', "run/config.json")
    with pytest.raises(InputError, match=r"run/config.json: Invalid JSON"):
        from_json(RunConfig, "{", "run/config.json")


def test_an_error_is_lines_that_can_be_printed():
    assert str(InputError("a\nb\x1b[2J\ud800\u202e", "c" * 1000)) == "a?b?[2J??\n" + "c" * 1000
    long = str(InputError("where: " + "c" * 5000 + ": wrong"))
    assert len(long) == 1000 and long.startswith("where: ccc") and long.endswith("ccc: wrong")
    assert str(InputError("Bébé \U0001f600")) == "Bébé \U0001f600"


@pytest.mark.parametrize("number", ["1e400", "9" * 400, "1" + "0" * 4000])
def test_numbers_beyond_all_measure_are_one_line(number):
    for field in ("sample_rate", "fmax", "hop_length"):
        with pytest.raises(InputError, match=r"^here: ") as error:
            from_json(FeatureConfig, f'{{"{field}": {number}}}', "here")
        assert len(str(error.value)) < 1000
    with pytest.raises(InputError, match=r"^here: clip_seconds: "):
        from_json(DataConfig, f'{{"clip_seconds": {number}}}', "here")


def test_a_long_value_hides_no_other_fault():
    text = '{"batch_size": "' + "x" * 5000 + '", "seed": -1}'
    with pytest.raises(InputError, match=r"seed: .* got -1; batch_size: .* got 'x{199}$"):
        from_json(TrainConfig, text, "here")
