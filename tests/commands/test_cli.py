"""Presets and the command line: found by name, overridden field by field, one line for each mistake."""

import dataclasses
import re
import signal
from pathlib import Path

import pytest

from qkd_jax.commands.cli import load_preset, override, run_command
from qkd_jax.config import DataConfig, FeatureConfig, RunConfig, TrainConfig
from qkd_jax.errors import InputError

PRESETS = Path(__file__).parents[1] / "configs"


def test_command_line_overrides_single_fields():
    preset = load_preset("demo", PRESETS)
    new = override(preset, ["--train.seed", "3", "--students.plain.units", "32", "--data.events", "a", "b"])
    assert new.train == dataclasses.replace(preset.train, seed=3)
    assert new.students["plain"].units == 32
    assert new.students["distilled-4"] == preset.students["distilled-4"]
    assert new.data.events == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.sed", "3"], ["--train.sed", "--train.seed"]),
        (["--train.seed", "x"], ["--train.seed", "INT", "'x'"]),
        (["--train.batch-size", "0"], ["batch_size", "greater than or equal to 1"]),
        (["--teacher.architecture", "vgg"], ["--teacher.architecture", "densenet", "resnet", "vgg"]),
        (
            ["--students.distilled-4.quant.weights", "1"],
            ["weights", "expected 2 to 16, or 32 for off, got 1"],
        ),
    ],
)
def test_a_wrong_argument_is_one_line_that_says_what_was_expected(arguments, words, capsys):
    with pytest.raises(InputError) as caught:
        override(load_preset("demo", PRESETS), arguments)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words)
    assert capsys.readouterr() == ("", "")


def test_help_lists_every_field(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        override(RunConfig(), ["--help"], prog="train.py")
    assert not caught.value.code
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for section in (TrainConfig, DataConfig, FeatureConfig):
        for field in dataclasses.fields(section):
            assert re.search(rf"\.{field.name.replace('_', '-')}\b", text)


def test_presets_are_found_by_name_and_checked(tmp_path):
    with pytest.raises(InputError, match=r"no preset 'pape'; there are: audioset, demo, desed, paper, small"):
        load_preset("pape", PRESETS)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="to a RunConfig or RunConfig, found NoneType"):
        load_preset("empty", tmp_path)
    (tmp_path / "wrong.py").write_text("from qkd_jax.config import Config\nconfig = RunConfig(nam='x')\n")
    with pytest.raises(InputError, match=r"wrong\.py: nam: Unexpected keyword argument"):
        load_preset("wrong", tmp_path)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (InputError("a.wav: not there"), 2, "error: a.wav: not there\n"),
        (
            PermissionError(13, "Permission denied", "runs"),
            2,
            "error: runs: Permission denied\n",
        ),
        (
            KeyboardInterrupt("teacher: stopped"),
            130,
            "teacher: stopped; the same command goes on from there\n",
        ),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from there\n"),
    ],
)
def test_a_command_ends_in_a_status_and_a_line(error, status, said, capsys):
    def main(arguments):
        assert arguments == ["x"]
        if error is not None:
            raise error

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_command(main, ["x"]) == status
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr() == ("", said)


def test_a_mistake_in_the_library_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda arguments: 1 / 0, [])
