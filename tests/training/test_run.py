"""Whole runs on a few synthesised clips: results, starts from other models, resuming, and faults."""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qkd_jax.config as cfg
from qkd_jax import train
from qkd_jax.commands.cli import run as run_command
from qkd_jax.commands.evaluate import _behind as behind
from qkd_jax.config import ClipRecipe, HeadConfig, LSTMConfig, ManifestData, ModelConfig, with_data
from qkd_jax.data import features as features_module
from qkd_jax.data.batches import clip_batches
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits
from qkd_jax.distill.objectives import positive_weights, weighted_bce
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.run_folder.folder import load_run, start_of
from qkd_jax.run_folder.log import read_log
from qkd_jax.run_folder.run import Run
from qkd_jax.system.progress import duration
from qkd_jax.training import clips as clips_module
from qkd_jax.training import run as run_module
from tests.faults import refused
from tests.training.runs import log_of

PLAIN = ModelConfig(network=LSTMConfig(hidden_size=4))


def on_recordings_of(finished, config, **changes):
    """Settings of another run on the recordings of the finished one."""
    earlier = load_run(finished)
    data = ManifestData(root=earlier.config.data.root, events=earlier.config.data.events, clip_seconds=0.4)
    return replace(config, cache=str(earlier.cache), data=data, **changes)


def training_batches(run):
    """The training data of a run without teachers, and its batches."""
    data = load_split(run.config, run.clips, "train", run.cache)
    seed = run.config.recipe.seed
    return data, clip_batches(data, None, frames=run.shape[0], batch_size=8, seed=seed)


def test_a_run_ends_with_figures_that_follow_from_the_kept_logits(finished):
    results = load_run(finished).results
    assert list(results["models"]) == ["teacher", "plain", "four"]
    assert results["clips"] == 20
    for name, row in results["models"].items():
        path = finished / "models" / name / "logits-test.npz"
        with np.load(path) as file:
            names, events = file["names"].tolist(), file["events"].tolist()
        logits = read_logits(path, names, events)
        table = (finished / "data" / "metadata.csv").read_text().splitlines()[1:]
        labels = {line.split(",")[0]: line.split(",")[1].split(";") for line in table}
        targets = np.array([[event in labels[clip] for event in events] for clip in names], np.float32)
        assert row["metrics"] == evaluate(targets, logits, events)
    # 4-bit kernels [3, 3, 1, 3] (27 half bytes) and [3, 3, 3, 4], and 4-bit weights [4 + 2 * 4, 16], each
    # with two numbers per column; 8-bit weights [4, 3]; batch-norms and biases in float32.
    packed, ranges = 14 + 108 // 2 + 12 * 16 // 2, 3 + 4 + 2 * 16
    expected = packed + 8 * ranges + 4 * 3 + 4 * (2 * (3 + 4) + 16 + 3)
    assert results["models"]["four"]["bytes"] == expected
    assert (finished / "results.png").stat().st_size > 10_000


def test_a_student_starts_from_the_best_state_of_another(config):
    models = {"plain": PLAIN, "next": replace(PLAIN, start="plain", ema_decay=0.5)}
    run = train(replace(config, models=models))
    data, batches = training_batches(run)
    first = {key: jnp.asarray(value) for key, value in batches[0].items()}
    logits = run.model("next").apply(run.best_variables("plain"), first["features"])
    loss = weighted_bce(logits, first["labels"], jnp.asarray(positive_weights(data.targets)))
    assert read_log(run.model_folder("next"))[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert read_log(run.model_folder("plain"))[0]["loss"] != pytest.approx(float(loss), rel=1e-3)


@pytest.mark.slow
def test_a_student_with_convolutions_starts_from_the_statistics_of_another(finished, config):
    earlier = load_run(finished)
    # At this rate parameters don't change, so the statistics are the first ones, updated by each batch.
    teachers = (str(finished / "models" / "teacher" / "teaching.npz"),)
    student = replace(config.models["four"], start=f"{finished}/four", learning_rate=1e-12, teachers=teachers)
    recipe = ClipRecipe(batch_size=8, epochs=1)
    run = train(on_recordings_of(finished, config, models={"next": student}, recipe=recipe))
    _, batches = training_batches(run)
    apply = jax.jit(partial(run.model("next").apply, train=True, mutable=["batch_stats"]))
    expected = earlier.best_variables("four")
    for step in range(3):
        expected |= apply(expected, jnp.asarray(batches[step]["features"]))[1]
    got = run.best_variables("next")
    close = partial(assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, *([each["params"], each["batch_stats"]] for each in (got, expected)))


def test_a_student_starts_from_a_model_of_another_run(config, finished, tmp_path):
    def changed(**changes):
        return replace(config, models={"next": replace(PLAIN, start=f"{finished}/plain", **changes)})

    config = with_data(config, events=load_run(finished).config.data.events)
    run, name = start_of(Run(tmp_path, changed()), "next")
    assert (run.folder, name) == (finished, "plain")
    other = r"--models\.next\.start: expected a model with the same parameter shapes, got .*/plain"
    with refused(other):
        train(changed(network=LSTMConfig(hidden_size=5)))
    for start, message in (
        (f"{finished}/nobody", r"expected a model of the run .*, got 'nobody'"),
        (f"{tmp_path}/gone/plain", r"gone/plain: expected a run"),
    ):
        gone = replace(config, models={"next": replace(PLAIN, start=start)})
        with refused(message):
            train(gone)
    assert not list(tmp_path.rglob("checkpoints"))
    # Once it has a whole checkpoint, it no longer needs the other model; a kill may leave half of the first.
    checkpoints = tmp_path / "models" / "next" / "checkpoints"
    (checkpoints / "3.orbax-checkpoint-tmp-0").mkdir(parents=True)
    assert start_of(Run(tmp_path, changed()), "next") == (run, "plain")
    (checkpoints / "3").mkdir()
    assert start_of(Run(tmp_path, gone), "next") is None
    # The integer-only scheme starts from float models.
    network = config.models["four"].network.quantized(cfg.QuantConfig.integer(4))
    models = {"next": ModelConfig(network=network, start=f"{finished}/four")}
    with refused(r"next\.start: expected a float model .*/four, which is quantized"):
        train(on_recordings_of(finished, config, models=models))


def test_teacher_logits_come_from_its_best_state_on_whole_clips(finished):
    run = load_run(finished)
    data = load_split(run.config, run.clips, "train", run.cache)
    kept = read_logits(run.model_folder("teacher") / "teaching.npz", data.names, data.events)
    model, variables = run.model("teacher"), run.best_variables("teacher")
    assert_allclose(kept, model.apply(variables, jnp.stack(data.features)), rtol=1e-4, atol=1e-5)
    mean = np.concatenate(data.features).mean(axis=0)
    assert_allclose(variables["norm"]["normalize"]["mean"], mean, rtol=1e-4)


def test_a_moved_run_resumes_under_another_spelling_of_its_path(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "moved", ignore=shutil.ignore_patterns("four"))
    monkeypatch.chdir(tmp_path)
    config = replace(load_run(finished).config, name="moved", runs=".")
    assert train(with_data(config, root=None)).results == load_run(finished).results


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    monkeypatch.setattr(clips_module, "from_step", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(features_module, "recording_features", lambda *_: pytest.fail("computed again"))
    before = (finished / "results.json").read_text()
    logits = finished / "models" / "teacher" / "teaching.npz"
    computed = logits.stat().st_mtime_ns
    run = train(load_run(finished).config)
    assert run == load_run(finished) and run.results["models"].keys() == run.config.models.keys()
    assert (finished / "results.json").read_text() == before
    assert logits.stat().st_mtime_ns == computed


def test_the_log_has_a_line_for_each_step_and_each_epoch(finished):
    lines = [json.loads(line) for line in log_of(finished, "plain")]
    steps = [line for line in lines if "loss" in line]
    epochs = [line for line in lines if "epoch" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [(line["step"], line["epoch"]) for line in epochs] == [(3, 1), (6, 2)]
    assert_allclose(epochs[1]["epoch_loss"], np.mean([line["loss"] for line in steps[3:]]))


def test_settings_that_differ_in_the_same_folder_are_refused_together(finished):
    config = load_run(finished).config
    others = r"recipe\.alpha = 0\.5, now 0\.25, recipe\.seed = 0, now 7; use another --name"
    with refused(rf"this run has {others}"):
        train(replace(config, recipe=replace(config.recipe, seed=7, alpha=0.25)))
    fewer = {name: config.models[name] for name in ("teacher", "plain")}
    with refused(r"models\.four\.\S+ = .*, now None"):
        train(replace(config, models=fewer))


def test_settings_and_recordings_are_fixed_from_the_first_checkpoint_on(config, folder):
    learner = ModelConfig(network=LSTMConfig(hidden_size=4), teachers=("none.npz",))
    with refused(r"none\.npz"):
        train(replace(config, models={"learner": learner}))
    assert [*load_run(folder).config.models] == ["learner"]
    config = replace(config, models={"plain": PLAIN})
    run = train(config)
    with refused(r"recipe\.batch_size = 8, now 4"):
        train(replace(config, recipe=replace(config.recipe, batch_size=4)))
    # Recordings added to the folder later do not become part of the run.
    before, table = run.clips, folder / "data" / "metadata.csv"
    table.write_text(table.read_text() + "audio/new.wav,bell,test\n")
    train(config)
    assert load_run(folder).clips == before and len(before) == 60
    (folder / "data" / "audio" / "test-00003.wav").unlink()
    with refused(r"test-00003\.wav: expected a recording of the run, found none; 1 of 60 are missing\Z"):
        train(config)


@pytest.mark.slow
def test_recordings_that_are_left_out_are_listed_in_the_folder(finished, config, tmp_path):
    root = tmp_path / "recordings"
    shutil.copytree(finished / "data", root)
    (root / "audio" / "train-00002.wav").write_bytes(b"")
    data, models = ManifestData(root=str(root), clip_seconds=0.4), {"teacher": config.models["teacher"]}
    config = replace(config, recipe=ClipRecipe(batch_size=8, epochs=1), data=data, models=models)
    with refused(r"1 of 60 recordings can't be used"):
        train(config)
    run = train(with_data(config, skip_bad=True))
    (line,) = (run.folder / "left-out.txt").read_text().splitlines()
    assert line.startswith(f"{root / 'audio' / 'train-00002.wav'}: expected a recording")
    assert len(run.clips) == 59
    # A new start removes the list.
    shutil.rmtree(run.model_folder("teacher"))
    shutil.copy(finished / "data" / "audio" / "train-00002.wav", root / "audio")
    run = train(with_data(config, skip_bad=True))
    assert not (run.folder / "left-out.txt").exists() and len(run.clips) == 60
    assert run.results["clips"] == 20


def test_a_run_without_models_with_too_many_blocks_or_without_a_finite_loss_is_refused(config, folder):
    with refused("models: expected at least one, got none"):
        train(replace(config, models={}))
    assert not folder.exists()
    network = cfg.DenseNetConfig(blocks=(1, 1, 1, 1, 1), growth=4, stem=4)
    with refused(r"models\.teacher\.network\.blocks: 5 blocks halve features of 38 x 8"):
        train(replace(config, models={"teacher": ModelConfig(network=network)}))
    teacher = replace(config.models["teacher"], learning_rate=1e30)
    with refused(r"teacher: \w+ became \w+ at step \d+; try a lower learning rate"):
        train(replace(config, models={"teacher": teacher}))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "train",
            ["papr"],
            "error: PRESET: expected audioset, demo, desed, paper, small, tuned, or a .py file",
        ),
        (
            "train",
            ["paper"],
            "error: --data.root: expected the folder that contains metadata.csv, got none\n",
        ),
        ("eval", [], "error: RUN[/MODEL]|FILE: expected a run folder or an exported file first, got none"),
        ("eval", ["nowhere"], "error: nowhere: expected a run's folder, with a config.json, or RUN/MODEL"),
        ("export", [], "error: RUN/MODEL: expected a model first, got none\n"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2(name, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(name, arguments, f"qkd-jax {name}") == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ([".lock"] if arguments == ["paper"] else [])


@pytest.mark.parametrize(("least", "updates"), [(0, 3), (6, 3), (7, 4), (20, 10)])
def test_an_epoch_has_enough_passes_for_the_least_number_of_updates(finished, least, updates):
    run = load_run(finished)  # 24 clips in batches of 8, two epochs
    data = clips_module.load(run)
    recipe = replace(run.config.recipe, min_updates=least)
    run = replace(run, config=replace(run.config, recipe=recipe))
    assert clips_module.batches(run, "plain", data)[0] == updates


def test_a_densenet_says_before_it_begins_how_long_it_takes(config, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "training_rate", lambda: 1e3)
    rate, work = 1e3, 3 * 2 * 3 * 8  # forward and twice as much backward; epochs, updates, clips
    run = train(replace(config, models={"teacher": config.models["teacher"]}))
    macs = run.results["models"]["teacher"]["multiply_adds"]
    expected = f"teacher: 6 updates of 8 clips, about {duration(work * macs / rate)} here, with a minute"
    out = capsys.readouterr().out
    assert expected in out and out.index(expected) < out.index("teacher: epoch 1/2")
    train(run.config)
    assert "updates of" not in capsys.readouterr().out  # nothing is left


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({"zero-shot": 9.0, "head": 5.0, "float": 5.5, "four": 6.0}, ""),
        (
            {"zero-shot": 9.0, "head": 5.0, "float": 5.5, "four": 6.1},
            "four (EER 6.1) is behind head (EER 5.0): ",
        ),
        (
            {"zero-shot": 9.0, "head": 5.0, "float": 8.0, "four": 7.0},
            "float (EER 8.0), four (EER 7.0) are behind head (EER 5.0): ",
        ),
        (
            {"zero-shot": 5.2, "head": 5.0, "float": 5.2, "four": 5.3},
            "four (EER 5.3) is behind zero-shot (EER 5.2): ",
        ),
        ({"head": 5.0, "four": 6.0}, ""),
        ({"four": 6.0}, ""),
    ],
)
def test_students_behind_a_head_are_told(errors, said):
    models = {
        "zero-shot": ModelConfig(network=HeadConfig(taggers=("x.toml",), fit=False)),
        "head": ModelConfig(network=HeadConfig(taggers=("x.toml",))),
        **{name: ModelConfig(network=LSTMConfig(), teachers=("head",)) for name in ("float", "four")},
    }
    rows = {name: {"metrics": {"average": {"eer": eer}}} for name, eer in errors.items()}
    line = behind(cfg.RunConfig(models=models), rows)
    assert line.startswith(said) and bool(line) == bool(said)
