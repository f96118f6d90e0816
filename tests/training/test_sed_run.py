"""A whole run of sound event detection on tones in noise: models, what they teach, figures, an export."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from qkd_jax.commands.evaluate import score_run
from qkd_jax.commands.export import export
from qkd_jax.config import ModelConfig, QuantConfig, RunConfig, SedTrainConfig
from qkd_jax.data.logits import StepLogits, write_step_logits
from qkd_jax.data.timed import SedDataset, load_sed_split
from qkd_jax.detector.events import detect
from qkd_jax.detector.file import load
from qkd_jax.errors import InputError
from qkd_jax.evaluation.prediction import step_logits
from qkd_jax.models.common import Logits
from qkd_jax.run_folder.folder import Run, load_run
from qkd_jax.training.sed_run import train_sed
from qkd_jax.training.sed_teachers import keep_embeddings, taught
from tests.tones import CRNN, FEATURES, LSTM, PITCHES, RATE, config_of, write_tones

pytest.importorskip("sed_scores_eval", reason="pip install -e '.[sed]'")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tones")
    write_tones(root)
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return load_run(train_sed(config_of(root, tmp_path_factory.mktemp("runs"))))


@pytest.fixture(scope="module")
def data(run):
    return {split: load_sed_split(run.config, run.clips, split, run.cache) for split in ("train", "valid")}


def test_each_model_learns_which_tone_and_when(run):
    results = json.loads((run.folder / "results.json").read_text())["models"]
    assert list(results) == ["first", "four", "lstm", "lstm-8"]
    for name, row in results.items():
        average = row["metrics"]["average"]
        assert average["auc"] > 95 and average["psds2"] > 50, (name, average)
    assert results["four"]["parameters"] == results["first"]["parameters"]  # nothing of its guide is left
    assert results["four"]["bytes"] < results["first"]["bytes"] / 2
    report = (run.folder / "report.html").read_text()
    assert "PSDS1" in report and "PSD-ROC" in report


def test_what_is_known_of_training_clips_is_what_was_asked_for(data):
    assert np.bincount(data["train"].kind).tolist() == [24, 24, 24]
    assert not data["valid"].kind.any()


def test_teachers_say_what_they_said_when_they_were_scored(run, data, tmp_path):
    """Fused by hand from the models themselves, on some training clips."""
    some = jnp.stack([data["train"].features[clip] for clip in range(5)])
    own = run.model("first").apply(run.best_variables("first"), some, method="step_logits")
    with np.load(run.folder / "first/teaching.npz") as kept:
        other = StepLogits(-kept["clip"], -kept["frames"], kept["precision"] / 2, (2, 2))
    path = tmp_path / "other.npz"
    write_step_logits(path, data["train"].names, data["train"].events, other)
    four = dataclasses.replace(run.config.models["four"], teachers=("first", str(path)))
    models = {**run.config.models, "four": four}
    found = taught(Run(run.folder, dataclasses.replace(run.config, models=models)), "four", data)
    share = scipy.special.softmax(np.stack([2 * other.precision, other.precision]), axis=0)
    for key, logits in (("teacher", own.steps), ("teacher_clip", own.clip)):
        yes = np.asarray(jax.nn.sigmoid(logits))
        expected = share[0] * yes + share[1] * (1 - yes)
        np.testing.assert_allclose(found[key][:5], expected, atol=2e-3)  # kept as halves
    _, inner = run.model("first").apply(
        run.best_variables("first"),
        some,
        capture_intermediates=lambda module, _: module.name == "front",
        mutable=["intermediates"],
    )
    inner = np.asarray(inner["intermediates"]["front"]["__call__"][0])
    guide = found["embeddings"][:, found["row_of_step"]].astype(np.float64)
    np.testing.assert_allclose(guide.mean(axis=(0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(guide.std(axis=(0, 1)), 1, atol=1e-3)
    # Each dimension moved and scaled as one.
    for size in range(inner.shape[-1]):
        slope, moved = np.polyfit(inner[..., size].ravel(), guide[:5, ..., size].ravel(), 1)
        assert slope > 0
        np.testing.assert_allclose(guide[:5, ..., size], slope * inner[..., size] + moved, atol=5e-3)


def test_a_taggers_embeddings_are_of_the_windows_nearest_to_the_steps(run, data, tmp_path, monkeypatch):
    """A tagger that says of each window when it is, twice, and something that never changes."""
    rows = np.array([[0.0, 0.0, 7.0], [0.3, -0.3, 7.0], [0.6, -0.6, 7.0], [0.9, -0.9, 7.0]])
    hop = 0.3
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    entries = [tmp_path / "rows.npy"] * len(data["train"].names)
    monkeypatch.setattr("qkd_jax.training.sed_teachers.tagger_embeddings", lambda *_: (entries, hop))
    guided = dataclasses.replace(FIRST, embeddings="tagger.toml")
    alone = Run(tmp_path, dataclasses.replace(run.config, models={"guided": guided}))
    monkeypatch.setattr(Run, "clips", run.clips)
    keep_embeddings(alone, "guided", data["train"])
    found = taught(alone, "guided", data)
    values = found["embeddings"][3, found["row_of_step"]].astype(np.float64)
    # A step is of two frames of 256 samples, the second 128 later: its middle is at 192 samples.
    middles = (192 + 256 * np.arange(len(values))) / RATE
    nearest = np.array([min(rows[:, 0], key=lambda time: abs(time - middle)) for middle in middles])
    spread = rows[:, 0].std()
    np.testing.assert_allclose(values[:, 0], (nearest - 0.45) / spread, atol=2e-3)
    np.testing.assert_allclose(values[:, 1], -values[:, 0], atol=1e-6)
    assert not values[:, 2].any() and values.shape == (30, 3)


def test_a_student_of_integers_leaves_the_run_and_says_when(run, root, tmp_path):
    path = export(run, "lstm-8", "safetensors", tmp_path / "lstm.safetensors")
    detector = load(path)
    detector = dataclasses.replace(detector, detection=dataclasses.replace(detector.detection, use="f1"))
    time = np.arange(3 * RATE) / RATE
    noise = np.random.default_rng(1).normal(0, 0.01, len(time))
    tone = ((time >= 1.2) & (time < 1.6)) * 0.2 * np.sin(2 * np.pi * PITCHES["high"] * time)
    events = [
        event for event in detect(detector, [(noise + tone).astype(np.float32)]) if event.event == "high"
    ]
    assert not any(event.offset < 1.1 or event.onset > 2 for event in events)
    longest = max(events, key=lambda event: event.offset - event.onset)
    assert longest.onset == pytest.approx(1.2, abs=0.15) and longest.offset < 2


def test_a_split_can_be_scored_if_it_is_known(run):
    results = score_run(run, only="first", split="valid")
    assert results["clips"] == 24 and results["models"]["first"]["metrics"]["average"]["psds1"] > 0
    with pytest.raises(InputError, match="all onsets and offsets are known, got train"):
        score_run(run, only="first", split="train")


@pytest.mark.slow
def test_stopped_and_gone_on_it_ends_in_the_same_bits(root, run, tmp_path, monkeypatch):
    config = config_of(root, tmp_path, models={"first": run.config.models["first"]}, cache=str(run.cache))
    steps = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr("qkd_jax.training.loop.asked_to_stop", lambda: next(steps) >= 5)
        with pytest.raises(KeyboardInterrupt, match="stopped at step"):
            train_sed(config)
    again = load_run(train_sed(config))
    ours, theirs = again.best_variables("first"), run.best_variables("first")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": ("second",)}, r"models\.a\.teachers: expected an earlier model .*none.*, got 'second'"),
        ({"start": "a"}, r"models\.a\.start: expected an earlier model"),
        ({"through": "mean_step"}, r"models\.a\.through: mean_step takes teachers, got none"),
        ({"network": dataclasses.replace(LSTM, quant=QuantConfig.integer(8))}, r"a\.start: expected a float"),
        ({"network": LSTM, "embeddings": "x.toml"}, r"a\.embeddings: only a CRNN"),
    ],
)
def test_a_model_that_cannot_be_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(models={"a": ModelConfig(**changes)})


def test_a_guide_of_other_steps_is_named():
    coarser = dataclasses.replace(CRNN, pools=((4, 4),))
    with pytest.raises(ValueError, match=r"models\.b\.embeddings: expected one of its \d+ steps, got 'a'"):
        RunConfig(models={"a": ModelConfig(network=coarser), "b": ModelConfig(network=CRNN, embeddings="a")})


def said_by(path, names, steps, span):
    clip, frames = np.zeros((len(names), 2)), np.zeros((len(names), steps, 2))
    write_step_logits(path, names, tuple(PITCHES), StepLogits(clip, frames, np.ones(2), span))
    return str(path)


FIRST = ModelConfig(network=CRNN)
COARSER = ModelConfig(network=dataclasses.replace(CRNN, pools=((4, 4),)))


@pytest.mark.parametrize(
    ("taught_by", "message"),
    [
        ((), r"models: expected at least one, got none"),
        (("other-steps",), r"other-steps\.npz: expected 30 steps of 61 frames, found 29"),
        (("other-clips",), r"other-clips\.npz: no logits for 72 clips, first 'train/audio/train000.wav'"),
        (("first", "other-span"), r"models\.taught\.teachers: expected teachers of one step, got spans"),
        (("first", "coarser"), r"teachers: expected teachers of one step, got spans \[\(2, 2\), \(4, 4\)\]"),
        (("none",), r"none\.npz"),
    ],
)
def test_what_cannot_teach_is_named_before_anything_trains(root, tmp_path, run, data, taught_by, message):
    names = data["train"].names
    files = {
        "other-steps": said_by(tmp_path / "other-steps.npz", names, 29, (2, 2)),
        "other-clips": said_by(tmp_path / "other-clips.npz", ["a.wav"] * len(names), 30, (2, 2)),
        "other-span": said_by(tmp_path / "other-span.npz", names, 15, (4, 4)),
        "none": str(tmp_path / "none.npz"),
    }
    teachers = tuple(files.get(name, name) for name in taught_by)
    models = {"first": FIRST, "coarser": COARSER, "taught": dataclasses.replace(FIRST, teachers=teachers)}
    config = config_of(root, tmp_path, cache=str(run.cache), models=models if taught_by else {})
    with pytest.raises(InputError, match=message):
        train_sed(config)
    assert not list(tmp_path.glob("tones/*/log.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": SedTrainConfig(strong=26)},
            r"train\.strong: expected at most the 24 strongly labelled clips, got 26",
        ),
        (
            {"models": {"a": FIRST, "b": dataclasses.replace(FIRST, embeddings="none.toml")}},
            r"none\.toml",
        ),
    ],
)
def test_what_cannot_train_is_named_before_anything_trains(root, tmp_path, run, changes, message):
    with pytest.raises(InputError, match=message):
        train_sed(config_of(root, tmp_path, cache=str(run.cache), **changes))
    assert not list(tmp_path.glob("tones/*/log.jsonl"))


def test_a_clip_longer_than_what_models_see_is_refused_where_others_teach(root, tmp_path, run):
    models = {"a": FIRST, "b": dataclasses.replace(FIRST, teachers=("a",))}
    config = config_of(root, tmp_path, cache=str(run.cache), models=models)
    shorter = dataclasses.replace(config.data, clip_seconds=0.5)
    with pytest.raises(InputError, match=r"models\.b: expected training recordings of at most .* = 0\.5"):
        train_sed(dataclasses.replace(config, data=shorter))


@pytest.mark.parametrize("frames", [5, 20, 21, 22, 23, 40, 55])
def test_windows_of_a_long_clip_say_each_step_once(frames):
    """A detector that tells which frames a step joins, on windows of 20 frames and steps of two."""
    features = np.arange(frames, dtype=np.float32)[:, None]
    data = SedDataset(["a"], [features], np.zeros((1, 1)), np.zeros(1), [()], [1.0], ("x",), FEATURES)

    def detect(_, batch):
        steps = batch.reshape(len(batch), 10, 2)[:, :, :1]
        return Logits(jnp.asarray(steps.max(axis=1)), jnp.asarray(steps))

    clip, (steps,) = step_logits(detect, None, data, 20, CRNN, batch_size=2)
    expected = (
        np.arange(0, max(frames // 2 * 2, 20), 2) if frames >= 20 else np.resize(features[:, 0], 20)[::2]
    )
    np.testing.assert_array_equal(steps[:, 0], expected)
    assert clip.tolist() == [[expected.max()]]
