"""Teachers of clips: models of the run, files of logits, taggers, their mean, and augmented posteriors."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax import train
from qkd_jax.audio.augment import augment
from qkd_jax.audio.reading import read_audio
from qkd_jax.config import AugmentConfig, ClipRecipe, LSTMConfig, ModelConfig, ResNetConfig
from qkd_jax.data.batches import clip_batches
from qkd_jax.data.dataset import Dataset, load_split
from qkd_jax.data.logits import StepLogits, read_logits, write_logits, write_step_logits
from qkd_jax.distill.objectives import positive_weights, weighted_bce
from qkd_jax.run_folder.folder import load_run
from qkd_jax.run_folder.log import read_log
from qkd_jax.run_folder.run import Run
from qkd_jax.training import clips, loop
from qkd_jax.training.clips import augment_clips
from qkd_jax.training.teachers import check_step_teachers, fused_posteriors, teacher_logits
from tests.faults import refused
from tests.tones import CRNN, config_of
from tests.training.runs import log_of
from tests.waveform_models import write_loudness

MASKS = {"time_masks": 1, "time_mask_frames": 5, "mel_masks": 1, "mel_mask_bands": 2}
AUGMENT = AugmentConfig(time_shift=0.3, mixup=0.4, **MASKS)


@pytest.fixture(scope="module")
def data(finished):
    run = load_run(finished)
    return load_split(run.config, run.clips, "train", run.cache)


def with_teachers(config, *teachers):
    """Settings in which these teach model four, at alpha 1."""
    four = replace(config.models["four"], teachers=tuple(map(str, teachers)))
    own = {"teacher": config.models["teacher"]} if "teacher" in teachers else {}
    models = {**own, "plain": config.models["plain"], "four": four}
    return replace(config, models=models, recipe=replace(config.recipe, alpha=1.0))


@pytest.fixture
def with_new_teachers(finished, tmp_path):
    """The function (teachers) -> a copy of the finished run in which these teach model four."""

    def with_new_teachers(*teachers):
        run = load_run(shutil.copytree(finished, tmp_path / f"run{len(list(tmp_path.iterdir()))}"))
        return replace(run, config=with_teachers(run.config, *teachers))

    return with_new_teachers


@pytest.fixture
def files(data, tmp_path):
    """Two files of logits, in another order, of more events and more clips than the run has."""
    rng, paths = np.random.default_rng(0), [tmp_path / "one.npz", tmp_path / "two.npz"]
    names, events = [*reversed(data.names), "another.wav"], ["other", *reversed(data.events)]
    for path in paths:
        write_logits(path, names, events, rng.normal(0, 3, (len(names), len(events))).astype(np.float32))
    return paths


@pytest.fixture
def tagger(tmp_path):
    """The function {event: gain} -> the TOML file of a tagger whose logits are gain · max |x|."""

    def tagger(gains):
        write_loudness(tmp_path / "model.onnx", (1, "samples"), [0.0, *gains.values()])
        (tmp_path / "names.txt").write_text("\n".join(["Nothing", *gains]))
        lines = ['file = "model.onnx"', 'classes = "names.txt"', 'output = "logits"', "[events]"]
        path = tmp_path / "tagger.toml"
        path.write_text("\n".join([*lines, *(f'{event} = ["{event}"]' for event in gains)]))
        return path

    return tagger


def test_the_mean_is_over_all_teachers(finished, data, files, with_new_teachers):
    own = read_logits(finished / "models" / "teacher" / "teaching.npz", data.names, data.events)
    others = [read_logits(path, data.names, data.events) for path in files]
    run = with_new_teachers("teacher", *files)
    # Logits that eval writes don't become targets, and those of the teacher are computed again.
    write_logits(run.model_folder("teacher") / "logits-train.npz", data.names, data.events, 0 * data.targets)
    (run.model_folder("teacher") / "teaching.npz").unlink()
    logits, known = teacher_logits(run, "four", data)
    assert_allclose(logits, (own + others[0] + others[1]) / 3, rtol=1e-6, atol=1e-6)
    assert logits.dtype == np.float32 and known.all()
    run = with_new_teachers(files[1])
    assert_array_equal(teacher_logits(run, "four", data)[0], others[1])
    # The logits are kept in the run, so the file is no longer needed.
    files[1].unlink()
    assert_array_equal(teacher_logits(run, "four", data)[0], others[1])


def test_a_tagger_teaches_the_events_that_it_knows(data, files, tagger, with_new_teachers, capsys):
    first, second, last = data.events
    path = tagger({first: 0.3, last: 0.6})
    run = with_new_teachers(path)
    paths = {clip.name: clip.path for clip in run.clips}
    loudest = np.array([np.abs(read_audio(paths[name])).max() for name in data.names])
    logits, known = teacher_logits(run, "four", data)
    assert known.tolist() == [True, False, True]
    expected = np.stack([0.3 * loudest, 0 * loudest, 0.6 * loudest], axis=1)
    assert_allclose(logits, expected, rtol=1e-5)
    assert f"logits of 24 training clips for all events, except {second}\n" in capsys.readouterr().out
    # An event's mean is over the teachers that know it.
    logits, known = teacher_logits(with_new_teachers(path, files[0]), "four", data)
    other = read_logits(files[0], data.names, data.events)
    mean = np.where([True, False, True], (expected + other) / 2, other)
    assert_allclose(logits, mean, rtol=1e-5, atol=1e-6)
    assert known.all()


@pytest.mark.slow
def test_events_that_no_teacher_knows_are_learned_from_labels_alone(data, tagger, config, monkeypatch):
    first = data.events[0]
    models = {"plain": ModelConfig(network=LSTMConfig(hidden_size=4), teachers=("tagger.toml",))}
    recipe = ClipRecipe(batch_size=8, epochs=2, alpha=1.0)
    monkeypatch.chdir(tagger({first: 0.5}).parent)
    run = train(replace(config, models=models, recipe=recipe))
    # Two of the three terms of the first loss come from the labels.
    logits, _ = teacher_logits(run, "plain", data)
    batches = clip_batches(data, logits, frames=run.shape[0], batch_size=8, seed=0)
    batch = jax.tree.map(jnp.asarray, batches[0])
    norm = np.load(run.folder / "norm.npz")
    state = run.new_state("plain", (norm["mean"], norm["std"]))
    logits = run.model("plain").apply(state.model, batch["features"])
    weight = jnp.asarray(positive_weights(data.targets))
    soft = 4 * weighted_bce(logits[:, :1] / 2, jax.nn.sigmoid(batch["teacher_logits"][:, :1] / 2))
    hard = weighted_bce(logits[:, 1:], batch["labels"][:, 1:], weight[1:])
    loss = read_log(run.model_folder("plain"))[0]["loss"]
    assert loss == pytest.approx(float(soft + 2 * hard) / 3, rel=1e-4)


def test_logits_from_a_file_teach_and_no_teacher_is_trained(finished, data, files, config, monkeypatch):
    monkeypatch.chdir(files[0].parent)
    # At alpha 1 the labels don't affect model four; model plain learns from the labels alone.
    run = train(with_teachers(config, "one.npz"))
    assert list(run.results["models"]) == ["plain", "four"]
    assert run.config.models["four"].teachers == (str(files[0]),)
    assert log_of(run.folder, "plain") == log_of(finished, "plain")
    temperature = run.config.recipe.temperature
    logits = read_logits(files[0], data.names, data.events) / temperature
    soft = 1 / (1 + np.exp(-logits))
    least = temperature**2 * -np.mean(soft * np.log(soft) + (1 - soft) * np.log(1 - soft))
    assert least < read_log(run.model_folder("four"))[0]["loss"] < least + 4 * temperature**2


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        (["teacher", "gone.npz"], r"gone\.npz: expected logits keyed by clip: .*No such file"),
        (["few.npz"], r"few\.npz: expected logits for all clips, found none for 23"),
        (["teacher", "gone.toml"], r"gone\.toml: expected a tagger's settings in TOML: .*No such file"),
    ],
)
def test_faults_of_a_file_are_reported_before_anything_trains(
    data, config, tmp_path, monkeypatch, teachers, message
):
    monkeypatch.chdir(tmp_path)
    write_logits(tmp_path / "few.npz", data.names[:1], data.events, np.zeros((1, 3), np.float32))
    with refused(message):
        train(with_teachers(config, *teachers))
    assert not list(tmp_path.rglob("checkpoints"))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("name", ["plain", "four"])
def test_batches_are_augmented_and_posteriors_are_mixed_as_labels_are(finished, data, name):
    run = load_run(finished)
    run = replace(run, config=replace(run.config, augment=AUGMENT))
    logits = read_logits(finished / "models" / "teacher" / "teaching.npz", data.names, data.events)
    plain = clip_batches(data, logits, frames=run.config.frames, batch_size=8, seed=0)
    _, batches_from = clips.batches(run, name, {"train": data})
    for update, batch in zip((5, 6), map(jax.block_until_ready, batches_from(5))):
        key = jax.random.fold_in(jax.random.key(run.config.recipe.seed), update)
        features = jnp.asarray(plain[update]["features"])
        # Labels that name the clips show which are mixed, and how.
        features, shares = augment(key, features, jnp.eye(8), AUGMENT, run.config.features.floor)
        assert_allclose(batch["features"], features, rtol=1e-5, atol=1e-5)
        shares = np.asarray(shares, np.float64)
        assert_allclose(batch["labels"], shares @ plain[update]["labels"], rtol=1e-5, atol=1e-6)
        if name == "four":
            expected = shares @ sigmoid(plain[update]["teacher_logits"])
            assert_allclose(sigmoid(np.asarray(batch["teacher_logits"])), expected, atol=1e-5)
        else:
            assert "teacher_logits" not in batch


@pytest.mark.parametrize("changes", [{"mixtures": 0.7}, {"mixup": 1.0}], ids=["mixtures", "mixup"])
def test_a_clip_mixed_with_an_unlabelled_one_is_not_labelled(changes):
    """Against NumPy, with the partners of the same draw, read off labels that name the clips."""
    rng, key, config = np.random.default_rng(0), jax.random.key(3), AugmentConfig(**changes)
    features = jnp.asarray(rng.normal(-3, 1, (40, 6, 4)), jnp.float32)
    logits, labelled = rng.normal(0, 20, (40, 2)), np.arange(40) % 3 > 0
    batch = {
        "features": features,
        "labels": jnp.asarray(rng.integers(0, 2, (40, 2)) * labelled[:, None], jnp.float32),
        "teacher_logits": jnp.asarray(logits, jnp.float32),
        "labelled": jnp.asarray(labelled, jnp.float32),
        "classes": jnp.asarray(rng.choice([1e-3, 0.5, 1 - 1e-3], (40, 30)), jnp.float32),
    }
    result = jax.tree.map(np.asarray, augment_clips(key, batch, config, 1e-6))
    _, shares = augment(key, features, jnp.eye(40), config, 1e-6)
    shares = np.asarray(shares, np.float64)
    others = shares - np.diag(np.diag(shares))
    partner = np.where(others.any(axis=1), others.argmax(axis=1), np.arange(40))
    moved = partner != np.arange(40)
    assert_array_equal(result["labelled"], labelled & labelled[partner])
    assert (labelled & moved & ~labelled[partner]).any() and (labelled & moved & labelled[partner]).any()
    p = sigmoid(logits)
    expected = shares @ p if "mixup" in changes else 1 - (1 - p) * (1 - p[partner])
    # A clip may be mixed with itself, which these labels don't show.
    posteriors = sigmoid(result["teacher_logits"].astype(np.float64))
    assert_allclose(posteriors[moved], np.clip(expected, 1e-4, 1 - 1e-4)[moved], atol=1e-6)
    assert np.isfinite(result["teacher_logits"]).all()
    p = np.float64(batch["classes"])
    expected = shares @ p if "mixup" in changes else 1 - (1 - p) * (1 - p[partner])
    assert_allclose(result["classes"][moved], expected[moved], atol=1e-6)
    assert (result["classes"] > 0).all() and (result["classes"] < 1).all()


@pytest.mark.parametrize("strides", [(2, 4), (4, 2), (4, 3), (3, 3)])
def test_teachers_with_other_steps_give_those_nearest_to_the_steps_of_the_first(tmp_path, strides):
    """Of 61 frames; step k of stride s is centred at frame s · (k + 1/2)."""
    names, events, rng = ["a", "b", "c"], ("x", "y"), np.random.default_rng(0)
    logits = [rng.normal(size=(3, 61 // stride, 2)) for stride in strides]
    files = [str(tmp_path / f"{place}.npz") for place in range(2)]
    for path, stride, steps in zip(files, strides, logits):
        kept = StepLogits(steps[:, 0], steps, np.ones(2), stride, stride)
        write_step_logits(Path(path), names, events, kept)
    student = ModelConfig(network=CRNN, teachers=tuple(files))
    config = config_of("root", tmp_path, models={"student": student})
    data = Dataset(names, [], np.zeros((3, 2), np.float32), events, np.zeros(3, np.int8))
    run = Run(tmp_path, config)
    assert config.frames == 61
    check_step_teachers(run, "student", data)
    targets = fused_posteriors(run, "student", {"train": data})
    assert targets.steps.shape == logits[0].shape
    last = 61 // strides[0] - 1
    assert_array_equal(targets.step_of_frame, np.minimum(np.arange(61) // strides[0], last))
    first, other = (sigmoid(each.astype(np.float16).astype(float)) for each in logits)
    for step in range(last + 1):
        # The frame in the middle of the step, of the two if it has an even number, stands for it.
        apart = np.abs(strides[1] * (np.arange(61 // strides[1]) + 0.5) - strides[0] * (step + 0.5))
        nearest = np.flatnonzero(apart <= apart.min() + 1)
        means = (first[:, step, None] + other[:, nearest]) / 2
        assert np.isclose(targets.steps[:, step, None], means, atol=1e-5).all(axis=(0, 2)).any()
    if strides[0] == strides[1]:
        assert_allclose(targets.steps, (first + other) / 2, atol=1e-5)


@pytest.mark.slow
def test_a_run_with_everything_on_resumes_bit_identical(config, monkeypatch):
    averaged = ModelConfig(network=LSTMConfig(hidden_size=4), teachers=("teacher",), ema_decay=0.9)
    teacher = ModelConfig(network=ResNetConfig(blocks=(1, 1), stem=4), learning_rate=1e-3)
    config = replace(config, augment=AUGMENT, models={"teacher": teacher, "averaged": averaged})
    stops = [("averaged", 4), ("teacher", 2)]

    def track(items, count, title):
        for step, item in enumerate(items, 1):
            if stops and (title, step) == stops[-1]:
                stops.pop()
                signal.raise_signal(signal.SIGINT)
            yield item

    whole = train(replace(config, name="whole"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "track", track)
        for message in ("teacher: stopped at step 2", "averaged: stopped at step 4"):
            with pytest.raises(KeyboardInterrupt, match=message):
                train(config)
    cut = train(config)
    for name in ("teacher", "averaged"):
        jax.tree.map(assert_array_equal, *(run.best_variables(name) for run in (whole, cut)))
        assert log_of(whole.folder, name) == log_of(cut.folder, name)
    files = [run.model_folder("teacher") / "teaching.npz" for run in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
