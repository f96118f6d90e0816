"""Whole runs on a handful of synthesised clips: the table, resuming, scoring again, and faults."""

import dataclasses
import json
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.commands.evaluate import score_run
from qkd_jax.config import (
    DistillConfig,
    LSTMConfig,
    QuantConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
    with_data,
)
from qkd_jax.data import features as features_module
from qkd_jax.data.batches import train_batches
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits
from qkd_jax.distill.objectives import positive_weights, weighted_bce
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.run_folder.folder import Run, load_run
from qkd_jax.run_folder.log import read_log
from qkd_jax.training import run as run_module
from qkd_jax.training.run import train

ROOT = Path(__file__).parents[2]


def command(name, arguments):
    return runpy.run_path(str(ROOT / f"{name}.py"))["main"]([str(argument) for argument in arguments])


def test_a_run_ends_with_figures_that_follow_from_the_kept_logits(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["models"]) == ["teacher", "plain", "four"]
    assert results["clips"] == 20
    for name, row in results["models"].items():
        with np.load(finished / name / "logits-test.npz") as file:
            names, events = file["names"].tolist(), file["events"].tolist()
        logits = read_logits(finished / name / "logits-test.npz", names, events)
        table = (finished / "data" / "metadata.csv").read_text().splitlines()[1:]
        labels = {line.split(",")[0]: line.split(",")[1].split(";") for line in table}
        targets = np.array([[event in labels[clip] for event in events] for clip in names], np.float32)
        assert row["metrics"] == evaluate(targets, logits, events)
    # At 4 bits kernels of [3, 3, 1, 3], in 27 half bytes, and [3, 3, 3, 4], and weights [4 + 2 * 4, 16], each
    # with two numbers a column; at 8 bits [4, 3]; batch-norms and biases in float32.
    packed, ranges = 14 + 108 // 2 + 12 * 16 // 2, 3 + 4 + 2 * 16
    expected = packed + 8 * ranges + 4 * 3 + 4 * (2 * (3 + 4) + 16 + 3)
    assert results["models"]["four"]["bytes"] == expected
    assert (finished / "results.png").stat().st_size > 10_000


def test_a_student_begins_with_the_best_state_of_another(tiny_config, tmp_path):
    plain = LSTMConfig(hidden_size=4, distill=False)
    students = {"plain": plain, "next": dataclasses.replace(plain, start="plain", ema_decay=0.5)}
    run = load_run(train(tiny_config(tmp_path, students=students)))
    data = load_split(run.config, run.clips, "train", run.cache)
    batches = train_batches(data, None, frames=run.shape[0], batch_size=8, seed=run.config.train.seed)
    first = {key: jnp.asarray(value) for key, value in batches[0].items()}
    logits = run.model("next").apply(run.best_variables("plain"), first["features"])
    loss = weighted_bce(logits, first["labels"], jnp.asarray(positive_weights(data.targets)))
    assert read_log(run.folder / "next")[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert read_log(run.folder / "plain")[0]["loss"] != pytest.approx(float(loss), rel=1e-3)


def test_a_student_begins_with_another_until_its_first_checkpoint_is_whole(tiny_config, tmp_path):
    one = LSTMConfig(hidden_size=4, distill=False)
    config = tiny_config(tmp_path, students={"one": one, "two": dataclasses.replace(one, start="one")})
    run = Run(tmp_path, config)
    checkpoints = tmp_path / "two" / "checkpoints"
    # What a run leaves that is killed while it writes the first.
    (checkpoints / "3.orbax-checkpoint-tmp-0").mkdir(parents=True)
    assert run.start("two") == (run, "one")
    (checkpoints / "3").mkdir()
    assert run.start("two") is None


def test_the_integer_scheme_goes_on_from_no_quantized_student(finished, tiny_config, tmp_path):
    earlier = load_run(finished)
    quantized = dataclasses.replace(
        earlier.config.students["four"], start=f"{finished}/four", quant=QuantConfig.integer(4)
    )
    config = tiny_config(
        tmp_path,
        students={"next": quantized},
        cache=str(earlier.cache),
        data=dataclasses.replace(earlier.config.data, source="manifest"),
    )
    with pytest.raises(
        InputError, match=r"students.next.start: expected a float student, .*/four, quantized"
    ):
        train(config)


def test_a_student_with_convolutions_begins_with_the_statistics_of_another(finished, tiny_config, tmp_path):
    earlier = load_run(finished)
    # At such a rate parameters stay what they are, and statistics are those begun with, moved by each batch.
    student = dataclasses.replace(
        earlier.config.students["four"], start=f"{finished}/four", learning_rate=1e-12
    )
    config = tiny_config(
        tmp_path,
        students={"next": student},
        cache=str(earlier.cache),
        data=dataclasses.replace(earlier.config.data, source="manifest"),
        distill=DistillConfig(teachers=(str(finished / "teacher" / "teaching.npz"),)),
        train=TrainConfig(batch_size=8, student_epochs=1),
    )
    run = load_run(train(config))
    data = load_split(run.config, run.clips, "train", run.cache)
    batches = train_batches(data, None, frames=run.shape[0], batch_size=8, seed=run.config.train.seed)
    apply = jax.jit(partial(run.model("next").apply, train=True, mutable=["batch_stats"]))
    expected = earlier.best_variables("four")
    for step in range(3):
        expected |= apply(expected, jnp.asarray(batches[step]["features"]))[1]
    got = run.best_variables("next")
    for key in ("params", "batch_stats"):
        for a, b in zip(*map(jax.tree.leaves, (got[key], expected[key]))):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_student_begins_with_that_of_another_run(tiny_config, finished, tmp_path):
    student = LSTMConfig(hidden_size=4, distill=False, start=f"{finished}/plain")
    config = tiny_config(tmp_path, students={"next": student})
    config = with_data(config, events=load_run(finished).config.data.events)
    run, name = Run(tmp_path, config).start("next")
    assert (run.folder, name) == (finished, "plain")
    for change, said in (
        (
            {"start": f"{finished}/nobody"},
            r"students\.next\.start: expected a student with its .*, got .*/nobody",
        ),
        ({"units": 5}, r"students\.next\.start: expected a student with its .*, got .*/plain"),
        ({"start": f"{tmp_path}/gone/plain"}, r"gone: expected a run"),
    ):
        changed = dataclasses.replace(student, **change)
        with pytest.raises(InputError, match=said):
            train(dataclasses.replace(config, students={"next": changed}))
    assert not list(tmp_path.rglob("checkpoints"))
    # What has begun doesn't need the other any more.
    (tmp_path / "next" / "checkpoints" / "3").mkdir(parents=True)
    gone = dataclasses.replace(student, start=f"{tmp_path}/gone/plain")
    assert Run(tmp_path, dataclasses.replace(config, students={"next": gone})).start("next") is None


def test_teacher_logits_are_those_of_its_best_state_on_whole_clips(finished):
    run = load_run(finished)
    data = load_split(run.config, run.clips, "train", run.cache)
    kept = read_logits(finished / "teacher" / "teaching.npz", data.names, data.events)
    model, variables = run.model("teacher"), run.best_variables("teacher")
    np.testing.assert_allclose(kept, model.apply(variables, jnp.stack(data.features)), rtol=1e-4, atol=1e-5)
    mean = np.concatenate(data.features).mean(axis=0)
    np.testing.assert_allclose(variables["norm"]["normalize"]["mean"], mean, rtol=1e-4)


def test_eval_prints_the_figures_of_training_to_the_last_digit(finished, capsys):
    before = (finished / "results.json").read_text()
    command("eval", [finished])
    assert (finished / "results.json").read_text() == before
    printed = capsys.readouterr().out
    for name, row in json.loads(before)["models"].items():
        line = next(line for line in printed.splitlines() if name in line)
        assert f"{row['metrics']['average']['auc']:.2f}" in line
        assert f"{row['metrics']['average']['eer']:.2f}" in line
        assert f"{row['bytes']:,}" in line


def test_eval_of_one_model_on_another_split_is_on_that_split(finished, capsys):
    command("eval", [finished / "four", "--split", "valid"])
    printed = capsys.readouterr().out
    assert "valid: 16 clips" in printed
    assert "teacher" not in printed
    assert not (finished / "results-valid.json").exists()


@pytest.mark.parametrize("column", ["split", "part"])
def test_eval_on_other_recordings_of_the_same_layout(finished, tmp_path, capsys, column):
    shutil.copytree(finished / "data", tmp_path / "other")
    table = tmp_path / "other" / "metadata.csv"
    header, *rows = table.read_text().splitlines()
    kept = [row for row in rows if not row.startswith("audio/test-0000")]
    table.write_text("\n".join([header.replace("split", column), *kept]) + "\n")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    arguments = [finished, "--data.root", tmp_path / "other", "--json", tmp_path / "figures.json"]
    command("eval", arguments)
    # With or without a split column, what the models may have learned from is not scored.
    printed = capsys.readouterr().out
    assert (
        f"{len(kept)} of {len(kept)} recordings are the run's own by name, and stay in its splits" in printed
    )
    assert "test: 10 clips" in printed
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert after == before
    # The figures are those of the kept logits on the clips that stayed.
    names = [row.split(",")[0] for row in kept if row.endswith(",test")]
    labels = {row.split(",")[0]: row.split(",")[1].split(";") for row in kept}
    events = load_run(finished).config.data.events
    targets = np.array([[event in labels[name] for event in events] for name in names], np.float32)
    logits = read_logits(finished / "four" / "logits-test.npz", names, events)
    figures = json.loads((tmp_path / "figures.json").read_text())["models"]["four"]["metrics"]
    assert figures == evaluate(targets, logits, events)


def test_eval_on_recordings_that_the_run_does_not_know_scores_them_all(finished, tmp_path, capsys):
    shutil.copytree(finished / "data" / "audio", tmp_path / "other" / "clips")
    rows = (finished / "data" / "metadata.csv").read_text().splitlines()[1:]
    rows = [row.replace("audio/", "clips/").rpartition(",")[0] for row in rows]
    (tmp_path / "other" / "metadata.csv").write_text("\n".join(["filename,labels", *rows]) + "\n")
    command("eval", [finished, "--data.root", tmp_path / "other"])
    printed = capsys.readouterr().out
    assert "test: 60 clips" in printed and "the run's own" not in printed


def test_eval_on_the_runs_own_recordings_in_other_words(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished.parent)
    before = (finished / "results.json").stat().st_mtime_ns
    for arguments in (["--data.root", "tiny/data"], ["--data.skip-bad"]):
        command("eval", [finished, *arguments])
        assert "test: 20 clips" in capsys.readouterr().out
    assert (finished / "results.json").stat().st_mtime_ns > before


def test_eval_refuses_events_that_the_models_do_not_have(finished, tmp_path):
    with pytest.raises(InputError, match=r"data\.events: a run's models have .*, got \('dog',\)"):
        command("eval", [finished, "--data.root", tmp_path, "--data.events", "dog"])


def test_help_of_the_commands_lists_their_fields(capsys):
    for name, field in (("train", "--students.distilled-4.quant.weights"), ("eval", "--data.root")):
        with pytest.raises(SystemExit) as caught:
            command(name, ["--help"])
        assert not caught.value.code
        assert field in capsys.readouterr().out


def test_a_run_may_be_moved_and_is_gone_on_with_under_another_spelling(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "four")
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(load_run(finished).config, name="moved", runs=".")
    train(with_data(config, root=None))
    ours, theirs = (json.loads((path / "results.json").read_text()) for path in (Path("moved"), finished))
    assert ours == theirs


def test_a_teacher_with_more_blocks_than_its_features_have_rows(tmp_path, tiny_config):
    config = tiny_config(tmp_path, teacher=TeacherConfig(blocks=(1, 1, 1, 1, 1), growth=4, stem=4))
    with pytest.raises(InputError, match=r"teacher\.blocks: 5 blocks halve features of 38 x 8 to nothing"):
        train(config)


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    monkeypatch.setattr(run_module, "from_step", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(features_module, "recording_features", lambda *_: pytest.fail("computed again"))
    before = (finished / "results.json").read_text()
    logits = finished / "teacher" / "teaching.npz"
    computed = logits.stat().st_mtime_ns
    train(load_run(finished).config)
    assert (finished / "results.json").read_text() == before
    assert logits.stat().st_mtime_ns == computed


def test_log_has_a_line_for_each_step_and_each_epoch(finished):
    lines = [json.loads(line) for line in (finished / "plain" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    epochs = [line for line in lines if "epoch" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [(line["step"], line["epoch"]) for line in epochs] == [(3, 1), (6, 2)]
    np.testing.assert_allclose(epochs[1]["epoch_loss"], np.mean([line["loss"] for line in steps[3:]]))


def test_other_settings_in_the_same_folder_are_refused_by_name(finished):
    config = load_run(finished).config
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=7))
    with pytest.raises(
        InputError, match=r"json: this run has train\.seed = 0, now it is 7; give another --name"
    ):
        train(changed)
    fewer = dataclasses.replace(config, students={"plain": config.students["plain"]})
    with pytest.raises(InputError, match=r"students\.four\.\w+ = .*, now it is None"):
        train(fewer)


def test_settings_and_recordings_bind_from_the_first_checkpoint_on(tiny_config, tmp_path):
    config = tiny_config(tmp_path)
    with pytest.raises(InputError, match=r"train\.batch_size: expected at most the 24"):
        train(dataclasses.replace(config, train=TrainConfig(batch_size=64)))
    assert load_run(tmp_path / "tiny").config.train.batch_size == 64
    folder = train(config)
    with pytest.raises(InputError, match=r"train\.batch_size = 8, now it is 4"):
        train(dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=4)))
    # What comes into the folder of the recordings later is no part of the run.
    before, table = load_run(folder).clips, folder / "data" / "metadata.csv"
    table.write_text(table.read_text() + "audio/new.wav,bell,test\n")
    train(config)
    assert load_run(folder).clips == before and len(before) == 60
    (folder / "data" / "audio" / "test-00003.wav").unlink()
    with pytest.raises(InputError, match=r"1 of 20 recordings can't be used:\n.*test-00003\.wav: not there"):
        train(config)


def test_recordings_that_are_left_out_are_listed_in_the_folder(finished, tiny_config, tmp_path):
    root = tmp_path / "recordings"
    shutil.copytree(finished / "data", root)
    (root / "audio" / "train-00002.wav").write_bytes(b"")
    config = with_data(tiny_config(tmp_path), source="manifest", root=str(root))
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, teacher_epochs=1), students={}
    )
    with pytest.raises(InputError, match=r"1 of 60 recordings can't be used"):
        train(config)
    folder = train(with_data(config, skip_bad=True))
    (line,) = (folder / "left-out.txt").read_text().splitlines()
    assert line.startswith(f"{root / 'audio' / 'train-00002.wav'}: expected a recording")
    assert len(load_run(folder).clips) == 59
    # An earlier beginning leaves no list behind.
    shutil.rmtree(folder / "teacher")
    shutil.copy(finished / "data" / "audio" / "train-00002.wav", root / "audio")
    train(with_data(config, skip_bad=True))
    assert not (folder / "left-out.txt").exists() and len(load_run(folder).clips) == 60
    assert json.loads((folder / "results.json").read_text())["clips"] == 20


def test_a_non_finite_loss_stops_with_the_step_and_what_to_try(tmp_path, tiny_config):
    config = tiny_config(tmp_path)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, teacher_learning_rate=1e38))
    with pytest.raises(InputError, match=r"teacher: \w+ became \w+ at step \d+; try a lower learning_rate"):
        train(config)


def test_too_few_clips_for_a_batch(tmp_path, tiny_config):
    config = tiny_config(tmp_path, train=TrainConfig(batch_size=64))
    with pytest.raises(InputError, match=r"train\.batch_size: expected at most the 24 training clips"):
        train(config)


def test_scoring_what_is_not_there(finished, tmp_path):
    run = load_run(finished)
    with pytest.raises(InputError, match="no model 'five'; there are: teacher, plain, four"):
        score_run(run, only="five")
    with pytest.raises(InputError, match="expected clips of split 'tset', found none"):
        score_run(run, split="tset")
    with pytest.raises(InputError, match="expected a run with a config"):
        load_run(tmp_path)
    (tmp_path / "begun").mkdir()
    shutil.copy(finished / "config.json", tmp_path / "begun")
    with pytest.raises(InputError, match="expected checkpoints, found none"):
        score_run(load_run(tmp_path / "begun"))


def stderr_of(name, *arguments):
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stderr


def test_a_checkpoint_of_another_config_is_refused_in_one_line(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"units": 4', '"units": 5'))
    error = stderr_of("eval", tmp_path / "run" / "plain")
    assert error.count("\n") == 1
    assert re.match(
        r"error: .*/plain/checkpoints/\d: expected a checkpoint of this model, with params\.lstm\.0\.b "
        r"float32\[20\], found float32\[16\]",
        error,
    )


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("train", ["papr"], "error: no preset 'papr'; there are: audioset, demo, desed, paper, small\n"),
        ("train", ["paper"], "error: data.root: expected the folder that holds metadata.csv, got none\n"),
        (
            "eval",
            [],
            "error: expected a run's folder, or an exported file first. Score a run's models, or an",
        ),
        ("eval", ["nowhere"], "error: nowhere: expected a run with a config.json, found none\n"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2(name, arguments, said, capsys, tmp_path, monkeypatch):
    from qkd_jax.commands.cli import run_command

    monkeypatch.chdir(tmp_path)
    assert run_command(lambda given: command(name, given), arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ([".lock"] if arguments == ["paper"] else [])


def test_with_data_changes_nothing_else():
    config = RunConfig()
    assert with_data(with_data(config, root="x"), root=None) == config
