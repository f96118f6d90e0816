"""The help lists every setting, says nothing that isn't so, and is short."""

import dataclasses
import re

import pytest

from qkd_jax.commands.cli import load_preset, preset_paths
from qkd_jax.commands.help import field_docs, flags
from qkd_jax.commands.override import override
from qkd_jax.config import ClipRecipe, FeatureConfig, LSTMConfig, RunConfig, to_json
from tests.commands.configs import CLIPS, EVENTS


def help_of(config, capsys, asked="--help", **keywords):
    with pytest.raises(SystemExit) as caught:
        override(config, [asked], **keywords)
    assert not caught.value.code
    return capsys.readouterr().out


def shown(text):
    """The flags in a short help, each with the words after it and the models it is for."""
    names, found = [""], []
    for line in text.splitlines():
        if line.startswith("models.NAME"):
            names = line.partition(": NAME is ")[2].removeprefix("one of ").split(", ")
        if line.startswith("  --"):
            # Explanations stand two spaces behind a setting.
            for part in re.split(r" (?=--)", re.split(r"(?<=\S)  ", line.strip())[0]):
                flag, *words = part.split()
                found.append((flag, words, names))
    return found


def is_placeholder(words):
    return not words or "…" in words or words[0] in ("INT", "NUMBER", "TEXT")


@pytest.mark.parametrize(
    "config", [pytest.param(CLIPS, id="clips"), pytest.param(EVENTS, id="events", marks=pytest.mark.slow)]
)
def test_every_flag_that_is_shown_is_accepted_and_every_setting_is_shown(config, capsys):
    listed = shown(help_of(config, capsys))
    assert len(listed) > 50
    for flag, words, names in listed:
        for name in names:
            full = flag.replace("NAME", name)
            chosen = words and "|" in words[0]
            if not is_placeholder(words) and not (name and chosen):
                override(config, [full, *([words[0].split("|")[0]] if chosen else words)])
            assert full in flags(config)
    every = {flag.replace("NAME", name) for flag, _, names in listed for name in names}
    assert every == set(flags(config))


def test_the_values_shown_are_the_present_ones(capsys):
    """A run with the values that the help shows is the same run."""
    arguments = []
    for flag, words, [name, *_] in shown(help_of(CLIPS, capsys)):
        if not is_placeholder(words) and not ("|" in words[0] and "NAME" in flag):
            arguments += [flag.replace("NAME", name), *(word.split("|")[0] for word in words)]
    assert len(arguments) > 60
    assert override(CLIPS, arguments) == CLIPS


def test_settings_are_all_fields(capsys):
    text = help_of(CLIPS, capsys)
    for section in (ClipRecipe, type(CLIPS.data), FeatureConfig, LSTMConfig):
        for field in dataclasses.fields(section):
            if field.name != "quant":
                assert re.search(rf"\.{field.name.replace('_', '-')}\b", text), field.name
    assert "--models.NAME.objective" not in text
    assert "--models.NAME.objective.update student|mean_step|ema_ste" not in text


@pytest.mark.parametrize("name", preset_paths())
def test_the_help_of_each_preset_fits_three_screens(name, capsys):
    prog = f"qkd-jax train {name}"
    lines = help_of(load_preset(name), capsys, prog=prog, description="Train models.\n").splitlines()
    assert len(lines) <= 81 and max(map(len, lines)) <= 100
    assert lines[0].startswith(f"usage: {prog} [") and "Train models." in lines


def test_all_of_it_explains_the_settings_of_each_model(capsys):
    text = help_of(CLIPS, capsys, "--help-all")
    assert "NAME" not in text and max(map(len, text.splitlines())) <= 100
    for flag in flags(CLIPS):
        assert f"  {flag}" in text
    for name in CLIPS.models:
        assert f"--models.{name}.network." in text
    docs = field_docs(LSTMConfig)
    joined = " ".join(text.split())
    assert all(" ".join(docs[field].split()) in joined for field in docs if field != "quant")


def test_a_small_help_is_whole(capsys):
    """Without models there is room for every explanation."""
    joined = " ".join(help_of(ClipRecipe(), capsys).split())
    docs = field_docs(ClipRecipe)
    assert len(docs) == len(dataclasses.fields(ClipRecipe)) - 1  # the tag explains itself
    for doc in docs.values():
        assert " ".join(doc.split()) in joined


def test_help_is_for_what_the_other_flags_make_and_changes_nothing(capsys):
    before = to_json(CLIPS)
    with pytest.raises(SystemExit):
        override(CLIPS, ["--data.source", "manifest", "--recipe.epochs", "77", "--help"])
    text = capsys.readouterr().out
    assert "--data.filename-column filename" in text and "--recipe.epochs 77" in text
    assert "--data.counts" not in text and to_json(CLIPS) == before
    assert "--name run" in help_of(RunConfig(), capsys)
