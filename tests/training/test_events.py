"""A whole run of timed events on tones in noise: models, teachers, embeddings, figures, an export."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax import export, score, train
from qkd_jax.config import EventObjective, EventRecipe, ModelConfig
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import StepLogits, write_step_logits
from qkd_jax.detector.events import detect
from qkd_jax.detector.file import load
from qkd_jax.run_folder.run import Run
from qkd_jax.training.teachers import embedding_targets, fused_posteriors, write_embeddings
from tests.faults import refused
from tests.tones import CRNN, PITCHES, RATE, config_of, write_tones

pytest.importorskip("sed_scores_eval", reason="the extra sed is not installed: pip install -e '.[sed]'")
FIRST = ModelConfig(network=CRNN)
GUIDED = ModelConfig(network=CRNN, objective=EventObjective(embeddings="none.toml"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tones")
    write_tones(root)
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return train(config_of(root, tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def data(run):
    return {split: load_split(run.config, run.clips, split, run.cache) for split in ("train", "valid")}


def test_each_model_learns_which_tone_and_when(run):
    results = run.results["models"]
    assert list(results) == ["first", "four", "lstm", "lstm-8"]
    for name, row in results.items():
        average = row["metrics"]["average"]
        assert average["auc"] > 95 and average["psds2"] > 50, (name, average)
    # The embedding layer doesn't count.
    assert results["four"]["parameters"] == results["first"]["parameters"]
    assert results["four"]["bytes"] < results["first"]["bytes"] / 2
    report = (run.folder / "report.html").read_text()
    assert "PSDS1" in report and "PSD-ROC" in report


def test_targets_are_the_teachers_posteriors_fused(run, data, tmp_path):
    """Against a fusion by hand, from the models themselves, on some training clips."""
    some = jnp.stack([data["train"].features[clip] for clip in range(5)])
    own = run.model("first").apply(run.best_variables("first"), some, method="step_logits")
    with np.load(run.model_folder("first") / "teaching.npz") as kept:
        other = StepLogits(-kept["clip"], -kept["steps"], kept["precision"] / 2, 2, 2)
    path = tmp_path / "other.npz"
    write_step_logits(path, data["train"].names, data["train"].events, other)
    four = replace(run.config.models["four"], teachers=("first", str(path)))
    models = {**run.config.models, "four": four}
    changed = Run(run.folder, replace(run.config, models=models))
    targets = fused_posteriors(changed, "four", data)
    share = scipy.special.softmax(np.stack([2 * other.precision, other.precision]), axis=0)
    for fused, logits in ((targets.steps, own.steps), (targets.clip, own.clip)):
        yes = np.asarray(jax.nn.sigmoid(logits))
        expected = share[0] * yes + share[1] * (1 - yes)
        assert_allclose(fused[:5], expected, atol=2e-3)  # kept as float16
    options = {"capture_intermediates": lambda module, _: module.name == "front", "mutable": "intermediates"}
    _, inner = run.model("first").apply(run.best_variables("first"), some, **options)
    inner = np.asarray(inner["intermediates"]["front"]["__call__"][0])
    embeddings = embedding_targets(changed, "four", 72)
    guide = embeddings.rows[:, embeddings.row_of_step].astype(np.float64)
    assert_allclose(guide.mean(axis=(0, 1)), 0, atol=1e-3)
    assert_allclose(guide.std(axis=(0, 1)), 1, atol=1e-3)
    # Each dimension is shifted and scaled as a whole.
    for size in range(inner.shape[-1]):
        slope, moved = np.polyfit(inner[..., size].ravel(), guide[:5, ..., size].ravel(), 1)
        assert slope > 0
        assert_allclose(guide[:5, ..., size], slope * inner[..., size] + moved, atol=5e-3)


def test_a_taggers_embeddings_come_from_the_windows_nearest_to_the_steps(run, data, tmp_path, monkeypatch):
    """With a tagger whose embeddings are the time of each window, twice, and a constant."""
    rows = np.array([[0.0, 0.0, 7.0], [0.3, -0.3, 7.0], [0.6, -0.6, 7.0], [0.9, -0.9, 7.0]])
    hop = 0.3
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    entries = [tmp_path / "rows.npy"] * len(data["train"].names)
    monkeypatch.setattr("qkd_jax.training.teachers.tagger_embeddings", lambda *_: (entries, hop))
    guided = replace(FIRST, objective=EventObjective(embeddings="tagger.toml"))
    alone = Run(tmp_path, replace(run.config, models={"guided": guided}))
    monkeypatch.setattr(Run, "clips", run.clips)
    write_embeddings(alone, "guided", data["train"])
    embeddings = embedding_targets(alone, "guided", len(entries))
    values = embeddings.rows[3, embeddings.row_of_step].astype(np.float64)
    # A step reads two frames of 256 samples, the second 128 later: its centre is at 192 samples.
    middles = (192 + 256 * np.arange(len(values))) / RATE
    nearest = np.array([min(rows[:, 0], key=lambda time: abs(time - middle)) for middle in middles])
    spread = rows[:, 0].std()
    assert_allclose(values[:, 0], (nearest - 0.45) / spread, atol=2e-3)
    assert_allclose(values[:, 1], -values[:, 0], atol=1e-6)
    assert not values[:, 2].any() and values.shape == (30, 3)


def test_an_exported_student_detects_when_an_event_happens(run, root, tmp_path):
    path = export(run, "lstm-8", out=tmp_path / "lstm.safetensors")
    detector = load(path)
    detector = replace(detector, event_config=replace(detector.event_config, use="f1"))
    time = np.arange(3 * RATE) / RATE
    noise = np.random.default_rng(1).normal(0, 0.01, len(time))
    tone = ((time >= 1.2) & (time < 1.6)) * 0.2 * np.sin(2 * np.pi * PITCHES["high"] * time)
    events = detect(detector, [(noise + tone).astype(np.float32)])
    events = [event for event in events if event.event == "high"]
    assert not any(event.offset < 1.1 or event.onset > 2 for event in events)
    longest = max(events, key=lambda event: event.offset - event.onset)
    assert longest.onset == pytest.approx(1.2, abs=0.15) and longest.offset < 2


def test_training_clips_keep_the_labels_that_are_left_and_other_splits_can_be_scored(run, data):
    assert np.bincount(data["train"].kind).tolist() == [24, 24, 24]
    assert not data["valid"].kind.any()
    results = score(run, model="first", split="valid")
    assert results["clips"] == 24 and results["models"]["first"]["metrics"]["average"]["psds1"] > 0
    with refused("--split: expected a strongly labelled split, got train"):
        score(run, model="first", split="train")


@pytest.mark.slow
def test_a_resumed_run_ends_bit_identical(root, run, tmp_path, monkeypatch):
    config = config_of(root, tmp_path, models={"first": run.config.models["first"]}, cache=str(run.cache))
    steps = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr("qkd_jax.training.loop.asked_to_stop", lambda: next(steps) >= 5)
        with pytest.raises(KeyboardInterrupt, match="stopped at step"):
            train(config)
    again = train(config)
    jax.tree.map(assert_array_equal, *(each.best_variables("first") for each in (again, run)))


def written(path, names, steps, stride):
    """The file `path` with logits of `steps` steps."""
    clip, by_step = np.zeros((len(names), 2)), np.zeros((len(names), steps, 2))
    logits = StepLogits(clip, by_step, np.ones(2), stride, stride)
    write_step_logits(path, names, tuple(PITCHES), logits)
    return str(path)


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        (("other-steps",), r"other-steps\.npz: expected 30 steps of 61 frames, found 29"),
        (
            ("other-clips",),
            r"other-clips\.npz: expected logits for all clips, found none for 72 \(first: 'train/au",
        ),
        (("none",), r"none\.npz"),
    ],
)
def test_faults_of_teachers_are_named_before_anything_trains(root, tmp_path, run, data, teachers, message):
    names = data["train"].names
    files = {
        "other-steps": written(tmp_path / "other-steps.npz", names, 29, 2),
        "other-clips": written(tmp_path / "other-clips.npz", ["a.wav"] * len(names), 30, 2),
        "none": str(tmp_path / "none.npz"),
    }
    student = replace(FIRST, teachers=tuple(files.get(name, name) for name in teachers))
    models = {"first": FIRST, "student": student}
    config = config_of(root, tmp_path, cache=str(run.cache), models=models)
    with refused(message):
        train(config)
    assert not list(tmp_path.glob("tones/models/*/log.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe": EventRecipe(strong=26)},
            r"--recipe\.strong: .* 24 \(strongly labelled training clips\), got 26",
        ),
        ({"models": {"a": FIRST, "b": GUIDED}}, r"none\.toml"),
    ],
)
def test_faults_of_recipes_are_named_before_anything_trains(root, tmp_path, run, changes, message):
    with refused(message):
        train(config_of(root, tmp_path, cache=str(run.cache), **changes))
    assert not list(tmp_path.glob("tones/models/*/log.jsonl"))


def test_a_clip_longer_than_the_input_is_refused_for_a_model_with_teachers(root, tmp_path, run):
    models = {"a": FIRST, "b": replace(FIRST, teachers=("a",))}
    config = config_of(root, tmp_path, cache=str(run.cache), models=models)
    with refused(r"models\.b: expected training recordings of at most --data\.clip-seconds 0\.5"):
        train(replace(config, data=replace(config.data, clip_seconds=0.5)))
