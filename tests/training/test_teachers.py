"""Who teaches: the run's own teacher, files of logits, their mean, and one that sees augmented clips."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from qkd_jax.audio.augment import augment
from qkd_jax.audio.reading import read_audio
from qkd_jax.config import AugmentConfig, DistillConfig, LSTMConfig, RunConfig, TeacherConfig
from qkd_jax.data.batches import train_batches
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits, write_logits
from qkd_jax.distill.objectives import positive_weights, weighted_bce
from qkd_jax.errors import InputError
from qkd_jax.run_folder.folder import load_run
from qkd_jax.training import loop
from qkd_jax.training.run import train
from qkd_jax.training.teachers import make_augment, mean_logits
from tests.waveform_models import write_loudness

AUGMENT = AugmentConfig(
    time_shift=0.3, time_masks=1, time_mask_frames=5, mel_masks=1, mel_mask_bands=2, mixup=0.4
)


@pytest.fixture(scope="module")
def data(finished):
    run = load_run(finished)
    return load_split(run.config, run.clips, "train", run.cache)


def with_teachers(config, *teachers):
    return dataclasses.replace(config, distill=dataclasses.replace(config.distill, teachers=teachers))


@pytest.fixture
def taught_by(finished, tmp_path):
    """The function (teachers) -> a run, the finished one for the rest, that has these."""

    def taught_by(*teachers):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        shutil.copytree(finished, folder)
        (folder / "foreign.npy").unlink()
        run = load_run(folder)
        return dataclasses.replace(run, config=with_teachers(run.config, *map(str, teachers)))

    return taught_by


@pytest.fixture
def foreign(data, tmp_path):
    """Two files of logits, in another order, of more events and more clips than the run has."""
    rng, paths = np.random.default_rng(0), [tmp_path / "one.npz", tmp_path / "two.npz"]
    names, events = [*reversed(data.names), "another.wav"], ["other", *reversed(data.events)]
    for path in paths:
        write_logits(path, names, events, rng.normal(0, 3, (len(names), len(events))).astype(np.float32))
    return paths


@pytest.fixture
def tagger(tmp_path):
    """The function {event: gain} -> the description of a tagger whose logits are gain · max |x|."""

    def tagger(gains):
        write_loudness(tmp_path / "model.onnx", (1, "samples"), [0.0, *gains.values()])
        (tmp_path / "names.txt").write_text("\n".join(["Nothing", *gains]))
        lines = ['file = "model.onnx"', 'classes = "names.txt"', 'output = "logits"', "[events]"]
        path = tmp_path / "tagger.toml"
        path.write_text("\n".join([*lines, *(f'{event} = ["{event}"]' for event in gains)]))
        return path

    return tagger


def test_the_mean_is_over_all_teachers(finished, data, foreign, taught_by):
    own = read_logits(finished / "teacher" / "teaching.npz", data.names, data.events)
    others = [read_logits(path, data.names, data.events) for path in foreign]
    logits, known = mean_logits(taught_by("trained", *foreign), data)
    np.testing.assert_allclose(logits, (own + others[0] + others[1]) / 3, rtol=1e-6, atol=1e-6)
    assert logits.dtype == np.float32 and known.all()
    run = taught_by(foreign[1])
    np.testing.assert_array_equal(mean_logits(run, data)[0], others[1])
    # What they taught at first they teach to the end.
    foreign[1].unlink()
    np.testing.assert_array_equal(mean_logits(run, data)[0], others[1])


def test_a_tagger_teaches_what_it_knows(data, foreign, tagger, taught_by, capsys):
    first, second, last = data.events
    path = tagger({first: 0.3, last: 0.6})
    run = taught_by(path)
    paths = {clip.name: clip.path for clip in run.clips}
    loudest = np.array([np.abs(read_audio(paths[name])).max() for name in data.names])
    logits, known = mean_logits(run, data)
    assert known.tolist() == [True, False, True]
    expected = np.stack([0.3 * loudest, 0 * loudest, 0.6 * loudest], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    # Who doesn't know an event doesn't count for it.
    assert f"tagger.toml: teaches all but {second}\n" in capsys.readouterr().out
    logits, known = mean_logits(taught_by(path, foreign[0]), data)
    other = read_logits(foreign[0], data.names, data.events)
    mean = np.where([True, False, True], (expected + other) / 2, other)
    np.testing.assert_allclose(logits, mean, rtol=1e-5, atol=1e-6)
    assert known.all()


def test_events_that_no_teacher_knows_are_learned_from_labels_alone(
    finished, data, tagger, tiny_config, tmp_path
):
    first = data.events[0]
    config = with_teachers(
        tiny_config(tmp_path, students={"plain": LSTMConfig(hidden_size=4)}), "tagger.toml"
    )
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, alpha=1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tagger({first: 0.5}).parent)
        folder = train(config)
    # Of the three terms of the first loss two are those of the labels, and all are of the same student.
    run = load_run(folder)
    batches = train_batches(data, mean_logits(run, data)[0], frames=run.shape[0], batch_size=8, seed=0)
    batch = jax.tree.map(jnp.asarray, batches[0])
    norm = np.load(folder / "norm.npz")
    state = run.new_state("plain", (norm["mean"], norm["std"]))
    logits = run.model("plain").apply(state.model, batch["features"])
    weight = jnp.asarray(positive_weights(data.targets))
    taught = 4 * weighted_bce(logits[:, :1] / 2, jax.nn.sigmoid(batch["teacher_logits"][:, :1] / 2))
    told = weighted_bce(logits[:, 1:], batch["labels"][:, 1:], weight[1:])
    logged = json.loads((folder / "plain" / "log.jsonl").read_text().splitlines()[0])
    assert logged["loss"] == pytest.approx(float(taught + 2 * told) / 3, rel=1e-4)


def test_what_eval_writes_midway_teaches_nobody(finished, data, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    write_logits(tmp_path / "run" / "teacher" / "logits-train.npz", data.names, data.events, 0 * data.targets)
    (tmp_path / "run" / "teacher" / "teaching.npz").unlink()
    expected = read_logits(finished / "teacher" / "teaching.npz", data.names, data.events)
    np.testing.assert_array_equal(mean_logits(load_run(tmp_path / "run"), data)[0], expected)


def test_a_foreign_model_teaches_and_none_is_trained(
    finished, data, foreign, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = with_teachers(tiny_config(tmp_path), "one.npz")
    # At alpha 1 the labels count for nothing, and the plain student is what labels alone make of it.
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, alpha=1.0))
    folder = train(config)
    assert list(json.loads((folder / "results.json").read_text())["models"]) == ["plain", "four"]
    assert not (folder / "teacher").exists()
    assert load_run(folder).config.distill.teachers == (str(foreign[0]),)
    plain, other = ((path / "plain" / "log.jsonl").read_text() for path in (folder, finished))
    assert plain == other
    logits = read_logits(foreign[0], data.names, data.events) / config.distill.temperature
    soft = 1 / (1 + np.exp(-logits))
    least = config.distill.temperature**2 * -np.mean(soft * np.log(soft) + (1 - soft) * np.log(1 - soft))
    first = json.loads((folder / "four" / "log.jsonl").read_text().splitlines()[0])
    assert least < first["loss"] < least + 4 * config.distill.temperature**2


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        (["trained", "gone.npz"], r"gone\.npz: expected logits keyed by clip: .*No such file"),
        (["few.npz"], r"few\.npz: no logits for 23 clips, first"),
        (["trained", "gone.toml"], r"gone\.toml: expected a tagger's settings in TOML: .*No such file"),
    ],
)
def test_what_is_wrong_with_a_file_shows_before_anything_is_trained(
    data, tiny_config, tmp_path, monkeypatch, teachers, said
):
    monkeypatch.chdir(tmp_path)
    write_logits(tmp_path / "few.npz", data.names[:1], data.events, np.zeros((1, 3), np.float32))
    with pytest.raises(InputError, match=said):
        train(with_teachers(tiny_config(tmp_path), *teachers))
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_teacher_from_a_file_cannot_see_augmented_clips():
    with pytest.raises(ValidationError, match=r"distill\.teachers: expected 'trained' alone.* got 'x\.npz'"):
        RunConfig(augment=AUGMENT, distill=DistillConfig(teachers=("trained", "x.npz")))
    RunConfig(augment=AugmentConfig(time_mask_frames=3), distill=DistillConfig(teachers=("x.npz",)))


@pytest.mark.parametrize("taught", [False, True])
def test_the_teacher_sees_what_the_student_sees(finished, data, taught):
    run = load_run(finished)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, augment=AUGMENT))
    batch = {"features": np.stack(data.features)[:8], "labels": data.targets[:8]}
    change = make_augment(run, taught=taught)
    changed = change(5, batch)
    key = jax.random.fold_in(jax.random.key(run.config.train.seed), 5)
    features, labels = augment(key, *map(jnp.asarray, batch.values()), AUGMENT)
    np.testing.assert_allclose(changed["features"], features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(changed["labels"], labels, rtol=1e-5, atol=1e-6)
    assert (changed["features"] != change(6, batch)["features"]).any()
    if taught:
        logits = run.model("teacher").apply(run.best_variables("teacher"), changed["features"])
        np.testing.assert_allclose(changed["teacher_logits"], logits, rtol=1e-4, atol=1e-4)
    else:
        assert "teacher_logits" not in changed


@pytest.mark.slow
def test_a_run_with_everything_on_stops_and_goes_on_bit_identical(tiny_config, tmp_path, monkeypatch):
    def config(name):
        return dataclasses.replace(
            tiny_config(tmp_path, name=name),
            augment=AUGMENT,
            teacher=TeacherConfig(architecture="resnet", blocks=(1, 1), stem=4),
            students={"averaged": LSTMConfig(hidden_size=4, ema_decay=0.9)},
        )

    stops = [("averaged", 4), ("teacher", 2)]

    def track(items, count, title):
        for step, item in enumerate(items, 1):
            if stops and (title, step) == stops[-1]:
                stops.pop()
                signal.raise_signal(signal.SIGINT)
            yield item

    whole = train(config("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "track", track)
        for said in ("teacher: stopped at step 2", "averaged: stopped at step 4"):
            with pytest.raises(KeyboardInterrupt, match=said):
                train(config("cut"))
    cut = train(config("cut"))
    runs = load_run(whole), load_run(cut)
    jax.tree.map(np.testing.assert_array_equal, *(run.best_variables("averaged") for run in runs))
    jax.tree.map(np.testing.assert_array_equal, *(run.best_variables("teacher") for run in runs))
    for name in ("teacher", "averaged"):
        assert (cut / name / "log.jsonl").read_text() == (whole / name / "log.jsonl").read_text()
    # The teacher teaches live: there are no logits of clips as they are.
    assert not (cut / "teacher" / "teaching.npz").exists()
