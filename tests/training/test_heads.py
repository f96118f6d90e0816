"""Heads fitted on taggers: against scikit-learn and loops in float64; what they teach; whole runs."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from qkd_jax import train
from qkd_jax.config import (
    AugmentConfig,
    ClipRecipe,
    DemoData,
    HeadConfig,
    LSTMConfig,
    ManifestData,
    ModelConfig,
    RunConfig,
)
from qkd_jax.data.clips import KINDS, Annotation, targets
from qkd_jax.data.dataset import Dataset
from qkd_jax.data.logits import read_logits, read_step_logits
from qkd_jax.distill.tagger import TaggerConfig, run_tagger, tagger_logits
from qkd_jax.evaluation.cost import packed_bytes
from qkd_jax.models.build import build_model
from qkd_jax.models.head import Head
from qkd_jax.run_folder.log import read_epochs, read_log
from qkd_jax.run_folder.run import Run
from qkd_jax.system import isolation
from qkd_jax.training import classes, heads, loop, views
from qkd_jax.training.classes import read_classes
from qkd_jax.training.heads import (
    calibration,
    cross_fitted,
    folds_of,
    head_logits,
    load_heads,
    on_steps,
    read_by,
    train_head,
)
from tests.faults import refused
from tests.recordings import clip
from tests.taggers import tagger_of
from tests.tones import CRNN, PITCHES, config_of, write_tones
from tests.training.runs import assert_same_end, log_of
from tests.waveform_models import write_spectrum

EVENTS = ("x", "y", "z")
TEACHERS = {"one": ("x",), "two": ("x", "y"), "none": ("without",)}


class Given:
    """A run of a head on a tagger whose outputs are given, `rows` [windows, …] by clip, and its one split.

    With `valid`, the run is final, and its validation split is these of the clips.
    """

    def __init__(self, folder, monkeypatch, clips, rows, *, tagger=None, folds=2, valid=None, **settings):
        head = HeadConfig(taggers=("x.toml",), **{"components": None, "penalties": (0.1,)} | settings)
        recipe = ClipRecipe(final=valid is not None)
        models = {"head": ModelConfig(network=head)}
        config = RunConfig(data=ManifestData(events=EVENTS), recipe=recipe, models=models)
        self.run, by_name = Run(folder / "run", config), {each.name: row for each, row in zip(clips, rows)}
        monkeypatch.setattr(Run, "clips", clips)

        def run_tagger(path, clips, cache, channel):
            return tagger_of(folder / "rows", clips, [by_name[each.name] for each in clips], **tagger or {})

        monkeypatch.setattr(heads, "run_tagger", run_tagger)
        monkeypatch.setattr(heads, "_FOLDS", folds)  # each is compiled
        kind = np.array([KINDS.index(each.kind) for each in clips], np.int8)
        names = [each.name for each in clips]
        self.data = Dataset(
            names, [], targets(clips, EVENTS), EVENTS, kind, seconds=[3.0] * len(clips), clips=clips
        )
        splits = {"train": self.data, "valid": self.data}
        if valid is not None:
            names, some = [names[index] for index in valid], [clips[index] for index in valid]
            kinds = np.zeros(len(some), np.int8)
            splits["valid"] = Dataset(
                names, [], targets(some, EVENTS), EVENTS, kinds, seconds=[3.0] * len(some), clips=some
            )
        load_heads(self.run, splits)
        train_head(self.run, "head", splits)
        self.variables = self.run.best_variables("head")
        self.params = {name: np.asarray(leaf, np.float64) for name, leaf in self.variables["params"].items()}
        self.inputs = read_by(self.run, "head", self.data)

    @property
    def logits(self):
        return head_logits(self.run, "head", self.inputs, self.variables)

    def taught(self):
        """The largest logit of each clip that the head teaches."""
        return np.stack([each.max(axis=0) for each in cross_fitted(self.run, "head", self.data)])


def clips_of(labels, **fields):
    """Clips with the events that are 1 in the rows of `labels`; each value of `fields` has one per clip."""
    return [
        clip(
            f"{index:04}.wav",
            [event for event, yes in zip(EVENTS, row) if yes],
            **{name: values[index] for name, values in fields.items()},
        )
        for index, row in enumerate(labels)
    ]


def auc(truth, scores):
    return np.array([roc_auc_score(*each) for each in zip(truth.T, scores.T)])


# The fit.


@pytest.mark.parametrize("penalty", [0.003, 0.3])
def test_with_one_window_per_clip_it_is_logistic_regression(tmp_path, monkeypatch, penalty):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)) * [1, 2, 3, 1, 1, 5] + 3
    labels = x @ rng.normal(size=(6, 3)) + rng.normal(0, 4, (60, 3)) > rng.normal(0, 2, 3)
    made = Given(tmp_path, monkeypatch, clips_of(labels), x[:, None], penalties=(penalty,))
    inputs = np.stack([row[0] for row in made.inputs.features])
    assert_array_equal(inputs[:, :3], 0)
    scale = np.sqrt(x.var(axis=0) + (1 + 3000 / 60) * x.var(axis=0).mean())
    assert_allclose(inputs[:, 3:], (x - x.mean(axis=0)) / scale, atol=1e-4)
    for event in range(3):
        oracle = LogisticRegression(C=1 / (60 * penalty), tol=1e-10, max_iter=10_000)
        oracle.fit(inputs[:, 3:].astype(np.float64), labels[:, event])
        assert_allclose(made.params["w"][:, event], oracle.coef_[0], atol=2e-3)
        assert_allclose(made.params["b"][event], oracle.intercept_[0], atol=2e-3)
    expected = inputs[:, 3:] @ made.params["w"] + made.params["b"]
    assert_allclose(made.logits, expected, rtol=1e-4, atol=1e-4)


def test_a_final_head_chooses_without_the_validation_clips_and_then_fits_to_all(tmp_path, monkeypatch):
    """The labels of the validation clips are noise, so that fits with and without them differ much."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 6))
    labels = x @ rng.normal(size=(6, 3)) > 0
    labels[60:] = rng.integers(0, 2, (30, 3))
    penalties = (0.003, 0.1, 3.0)
    made = Given(
        tmp_path, monkeypatch, clips_of(labels), x[:, None], valid=range(60, 90), penalties=penalties
    )
    inputs = np.stack([row[0] for row in made.inputs.features])[:, 3:].astype(np.float64)

    def fits(count, penalty):
        oracles = [LogisticRegression(C=1 / (count * penalty), tol=1e-10, max_iter=10_000) for _ in EVENTS]
        return [oracle.fit(inputs[:count], labels[:count, event]) for event, oracle in enumerate(oracles)]

    valid = []
    for penalty in penalties:
        logits = np.stack([each.decision_function(inputs[60:]) for each in fits(60, penalty)], axis=1)
        valid.append(100 * auc(labels[60:], logits).mean())
    *tried, last = read_epochs(made.run.model_folder("head"))
    assert_allclose([record["valid"]["auc"] for record in tried], valid, atol=0.3)
    best = penalties[max(range(3), key=lambda index: (tried[index]["valid"]["auc"], index))]
    assert float(made.variables["fitted"]["penalty"]) == pytest.approx(best)
    for event, oracle in enumerate(fits(90, best)):
        assert_allclose(made.params["w"][:, event], oracle.coef_[0], atol=2e-3)
    assert last["epoch"] == 4


def test_a_final_head_ignores_epochs_that_were_logged_but_not_saved(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 6))
    labels = x @ rng.normal(size=(6, 3)) + rng.normal(0, 3, (60, 3)) > 0
    penalties, ends = (0.003, 0.1, 3.0), []
    for name, logged in (("clean", 0), ("killed", 3)):
        log = tmp_path / name / "run" / "models" / "head" / "log.jsonl"
        log.parent.mkdir(parents=True)
        valid = {"auc": 99.0, "eer": 1.0}
        records = [{"step": n, "epoch": n, "epoch_loss": 1.0, "valid": valid} for n in range(1, logged + 1)]
        # The last of equals would be chosen: of the first three, the largest penalty.
        log.write_text("".join(json.dumps(record) + "\n" for record in records))
        made = Given(
            tmp_path / name,
            monkeypatch,
            clips_of(labels),
            x[:, None],
            valid=range(40, 60),
            penalties=penalties,
        )
        ends.append(float(made.variables["fitted"]["penalty"]))
    tried = [record["valid"]["auc"] for record in read_epochs(made.run.model_folder("head"))][:3]
    best = penalties[max(range(3), key=lambda index: (tried[index], index))]
    assert ends == [pytest.approx(best)] * 2 and best != penalties[-1]


WINDOW, HOP = 0.5, 0.2


def kinds_of_windows(count, annotations, event):
    """1 for a window that is positive, 0 for a negative one, None for one that is ignored."""
    kinds = []
    for place in range(count):
        centre = WINDOW / 2 + HOP * place - (HOP / 2 if count > 1 and place == count - 1 else 0)
        kind = 0
        for each in annotations:
            if each.event == event:
                overlap = min(centre + WINDOW / 2, each.offset) - max(centre - WINDOW / 2, each.onset)
                if overlap > 0 and overlap >= min(0.3, (each.offset - each.onset) / 2):
                    kind = 1
                elif overlap > 0 and kind == 0:
                    kind = None
        kinds.append(kind)
    return kinds


def brute_force(w, b, gain, inputs, clips, penalty):
    """The loss, by the product over windows for weak clips, and the sum over windows for strong ones."""
    total = 0.0
    for each, rows in zip(clips, inputs):
        rows = rows.astype(np.float64)
        p = 1 / (1 + np.exp(-(gain * rows[:, :3] + rows[:, 3:] @ w + b)))
        for event, name in enumerate(EVENTS):
            if each.annotations is None:
                absent = np.prod(1 - p[:, event])
                total -= np.log(1 - absent if name in each.labels else absent)
                continue
            for posterior, kind in zip(p[:, event], kinds_of_windows(len(rows), each.annotations, name)):
                if kind is not None:
                    total -= np.log(posterior if kind else 1 - posterior)
    return total / len(clips) + penalty / 2 * (w**2).sum()


@pytest.mark.parametrize("strong", [0.0, 0.5, 1.0])
def test_the_loss_is_that_of_loops_over_clips_windows_and_annotations_at_its_minimum(
    tmp_path, monkeypatch, strong
):
    rng = np.random.default_rng(1)
    clips, rows = [], []
    for index, count in enumerate(np.random.default_rng(1).integers(1, 12, 60)):
        annotations = [
            Annotation(str(rng.choice([*EVENTS, "other"])), onset, onset + rng.choice([0.05, 0.4, 2.0]))
            for onset in rng.uniform(0, 2, rng.integers(0, 4))
        ]
        found = {each.event for each in annotations}
        item = clip(f"{index:02}.wav", found)
        clips.append(replace(item, annotations=tuple(annotations)) if rng.random() < strong else item)
        rows.append(rng.normal(0, 2, (count, 4)) + [event in found for event in (*EVENTS, "other")])
    tagger = {"window": WINDOW, "hop": HOP, "classes": ("A", "B", "C", "D"), "events": {"x": ("A", "D")}}
    penalty = 0.02
    made = Given(tmp_path, monkeypatch, clips, rows, tagger=tagger, penalties=(penalty,))
    if strong:
        kinds = [
            kind
            for each, row in zip(clips, rows)
            if each.annotations
            for kind in kinds_of_windows(len(row), each.annotations, "x")
        ]
        assert {0, 1, None} == set(kinds)
    count = sum("x" in each.labels for each in clips)
    gain = np.array([100 / (100 + sum(event in each.labels for each in clips)) for event in EVENTS])
    assert_allclose(made.variables["fitted"]["gain"], gain, rtol=1e-6)
    assert 5 <= count < 60
    inputs = list(made.inputs.features)
    assert_allclose(inputs[7][:, 0], rows[7][:, [0, 3]].max(axis=1), rtol=1e-6)

    def loss(flat):
        return brute_force(flat[:12].reshape(4, 3), flat[12:], gain, inputs, clips, penalty)

    flat = np.concatenate([made.params["w"].ravel(), made.params["b"]])
    (record, _) = read_log(made.run.model_folder("head"))
    assert record["loss"] == pytest.approx(loss(flat), rel=1e-5)
    gradient = scipy.optimize.approx_fprime(flat, loss, 1e-6)
    assert np.abs(gradient).max() < 2e-3


def test_rare_events_keep_the_zero_shot_logits_and_events_without_classes_are_fitted(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    labels = np.zeros((60, 3), int)
    labels[:4, 0], labels[2:8, 1], labels[5, 2] = 1, 1, 1  # 4, 6 and 1 positive clips
    rows = rng.normal(size=(60, 2, 5))
    rows[labels[:, 2] == 1] += 5
    tagger = {"classes": tuple("ABCDE"), "events": {"x": ("A",), "y": ("B", "C")}}
    made = Given(tmp_path, monkeypatch, clips_of(labels), rows, tagger=tagger, fewest=5)
    assert made.variables["fitted"]["events"].tolist() == [False, True, True]
    zero_shot = np.stack([rows[:, :, 0], rows[:, :, 1:3].max(axis=2)], axis=2).max(axis=1).astype(np.float32)
    assert_array_equal(made.logits[:, 0], zero_shot[:, 0])
    assert (made.logits[:, 1] != zero_shot[:, 1]).all() and auc(labels, made.logits)[2] == 1
    assert_allclose(made.variables["fitted"]["gain"], 100 / (100 + np.array([4, 6, 1])), rtol=1e-6)
    # All events of a head that isn't fitted do, and those without classes have 0.
    made = Given(tmp_path / "plain", monkeypatch, clips_of(labels), rows, tagger=tagger, fit=False)
    assert_array_equal(made.logits, np.stack([*zero_shot.T, np.zeros(60)], axis=1))
    assert len(log_of(made.run.folder, "head")) == 2


def test_the_hidden_layer_separates_what_a_line_cannot(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, (60, 2))
    labels = np.stack([x[:, 0] * x[:, 1] > 0, x[:, 0] > 0, x[:, 1] > 0], axis=1)
    tagger = {"penalties": (1e-5,)}
    areas = [
        auc(labels, Given(tmp_path / str(size), monkeypatch, clips_of(labels), 10 * x[:, None],
                          hidden_size=size, **tagger).logits)[0]
        for size in (0, 16)
    ]  # fmt: skip
    assert areas[0] < 0.7 and areas[1] > 0.97


def test_a_tagger_with_other_outputs_than_when_the_run_began_is_refused(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels, x = rng.integers(0, 2, (60, 3)), rng.normal(size=(60, 2, 6))
    Given(tmp_path, monkeypatch, clips_of(labels), x[:, :, :-1])
    with refused(r"inputs\.npz|x\.toml"):
        _ = Given(tmp_path, monkeypatch, clips_of(labels), x).logits


# What a head teaches.


def test_a_head_that_memorises_random_labels_does_not_teach_them(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    labels, x = rng.integers(0, 2, (80, 3)), rng.normal(size=(80, 2, 120))
    made = Given(tmp_path, monkeypatch, clips_of(labels), x, penalties=(1e-6,))
    assert (auc(labels, made.logits) > 0.99).all()
    assert (auc(labels, made.taught()) < 0.7).all()


def test_clips_of_a_group_share_a_fold(tmp_path, monkeypatch):
    """The inputs name the group, and all clips of a group have its label, which others of it would teach."""
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(15), 4)
    labels, x = rng.integers(0, 2, (15, 3))[group], 10 * np.eye(15)[group][:, None]
    x = x + rng.normal(0, 0.1, x.shape)
    clips = clips_of(labels, group=[f"g{each}" for each in group])
    made = Given(tmp_path, monkeypatch, clips, x, penalties=(1e-4,))
    assert (auc(labels, made.logits) > 0.99).all()
    assert (auc(labels, made.taught()) < 0.7).all()


def test_views_are_taught_by_heads_that_know_neither_source(tmp_path, monkeypatch):
    """The inputs of a view name its group, which has labels of its own; a view has none."""
    rng = np.random.default_rng(5)
    group = np.r_[np.repeat(np.arange(30), 3), np.arange(30)]
    labels, x = rng.integers(0, 2, (30, 3))[group], 10 * np.eye(30)[group][:, None]
    x, labelled = x + rng.normal(0, 0.1, x.shape), np.arange(120) < 90
    names = [f"g{each}" for each in group]
    clips = clips_of(labels * labelled[:, None], group=names, labelled=labelled.tolist())
    made = Given(tmp_path, monkeypatch, clips, x, penalties=(1e-4,))
    assert (auc(labels[90:], made.logits[90:]) > 0.99).all()
    assert (auc(labels[90:], made.taught()[90:]) < 0.7).all()


def test_both_sources_of_a_view_are_in_the_fold_that_the_head_which_labels_it_has_not_seen(
    tmp_path, monkeypatch
):
    rng, drawn, folds = np.random.default_rng(5), [], []
    group = np.repeat(np.arange(20), 3)
    clips = clips_of(rng.integers(0, 2, (60, 3)), group=[f"g{each}" for each in group])
    made = Given(tmp_path, monkeypatch, clips, rng.normal(size=(60, 2, 3)))
    config = replace(made.run.config, recipe=ClipRecipe(seed=3), augment=AugmentConfig(views=3))
    made.run = replace(made.run, config=config)
    monkeypatch.setattr(heads, "folds_of", lambda *given: folds.append(folds_of(*given)) or folds[-1])
    made.taught()
    monkeypatch.setattr(views, "read_tagger", lambda path: TaggerConfig(file="x.onnx"))
    monkeypatch.setattr(views, "_bytes", lambda *given: 0.0)
    monkeypatch.setattr(views, "make_views", lambda views, *given, **more: drawn.extend(views) or [])
    views.views_of(made.run, made.data)
    assert len(drawn) == 180 and len(folds) == 1
    fold_of = dict(zip(clips, folds[0]))
    both = [view.sources for view in drawn if len(view.sources) == 2]
    assert len(both) > 100 and all(fold_of[one] == fold_of[other] for one, other in both)


def test_an_event_of_one_group_is_taught_by_the_head_itself(tmp_path, monkeypatch):
    """A head that is fitted without the only group that has an event would deny it."""
    rng = np.random.default_rng(9)
    labels, group = rng.integers(0, 2, (60, 3)), np.repeat(np.arange(12), 5)
    labels[:, 2] = (group == 4) & (np.arange(60) % 5 < 3)
    x = rng.normal(size=(60, 2, 5))
    made = Given(tmp_path, monkeypatch, clips_of(labels, group=[f"g{each}" for each in group]), x)
    taught, own = made.taught(), made.logits
    for event, itself in enumerate([False, False, True]):
        slope, offset = np.polyfit(own[:, event], taught[:, event], 1)
        apart = np.abs(slope * own[:, event] + offset - taught[:, event])
        assert (apart.max() < 1e-3) == itself


def test_unlabelled_clips_get_the_logits_of_the_head_itself_calibrated(tmp_path, monkeypatch):
    rng = np.random.default_rng(6)
    labels, labelled = rng.integers(0, 2, (90, 3)), np.arange(90) % 3 > 0  # 60 labelled
    x = rng.normal(size=(90, 2, 5)) + np.pad(labels, ((0, 0), (0, 2)))[:, None]
    clips = clips_of(labels * labelled[:, None], labelled=labelled.tolist())
    made = Given(tmp_path, monkeypatch, clips, x)
    taught, own = made.taught(), made.logits
    for event in range(3):
        slope, offset = np.polyfit(own[~labelled, event], taught[~labelled, event], 1)
        assert slope > 0
        assert_allclose(slope * own[~labelled, event] + offset, taught[~labelled, event], atol=1e-3)
        others = slope * own[labelled, event] + offset - taught[labelled, event]
        assert (np.abs(others) > 1e-3).mean() > 0.9
        # Calibrated on the clips with labels: as many are expected as there are.
        expected = (1 / (1 + np.exp(-taught[labelled, event]))).sum()
        assert expected == pytest.approx(labels[labelled, event].sum(), abs=0.5)


def test_an_event_that_is_not_fitted_is_taught_by_its_classes(tmp_path, monkeypatch):
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, (60, 3))
    x = rng.normal(size=(60, 2, 5)) + np.pad(labels, ((0, 0), (0, 2)))[:, None]
    tagger = {"classes": tuple("ABCDE"), "events": dict(zip(EVENTS, (("A",), ("B",), ("C",))))}
    made = Given(tmp_path, monkeypatch, clips_of(labels), x, tagger=tagger, fit=False)
    for own, other in zip(made.logits.T, made.taught().T):
        slope, offset = np.polyfit(own, other, 1)
        assert slope > 0
        assert_allclose(slope * own + offset, other, atol=1e-4)


def test_a_slope_that_turns_the_order_around_is_not_used():
    targets = np.array([[0, 0], [0, 0], [1, 1], [1, 1]])
    logits = np.array([[1.0, 4], [2, 3], [3, 2], [4, 1]])
    slope, offset = calibration(logits, targets)
    assert slope[0] > 0 and (slope[1], offset[1]) == (1, 0)


@pytest.mark.parametrize("groups", [12, 3, 1], ids=lambda count: f"{count} groups")
def test_few_clips_are_cross_fitted_too(tmp_path, monkeypatch, groups):
    """Each set of events has at most four clips, fewer than there are folds."""
    rng = np.random.default_rng(8)
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]] * 3)
    clips = clips_of(labels, group=[f"g{index % groups}" for index in range(12)])
    made = Given(tmp_path, monkeypatch, clips, rng.normal(size=(12, 2, 3)), folds=5)
    assert np.isfinite(made.taught()).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 20), st.floats(0.05, 1.5), st.floats(0.05, 3))
def test_a_step_has_the_logits_of_the_window_nearest_to_its_centre(tmp_path_factory, count, hop, window):
    """Against the times of its four frames by hand: 400 samples every 160, of 3 s at 16 kHz."""
    folder, item = tmp_path_factory.mktemp("steps"), clip("a.wav")
    tagger = tagger_of(folder, [item], [np.zeros((count, 2))], hop=hop, window=window)
    inputs = heads.HeadInputs([tagger], EVENTS)
    data = Dataset(
        ["a.wav"], inputs, np.zeros((1, 3), np.float32), EVENTS, np.zeros(1, np.int8), seconds=[3.0]
    )
    network = HeadConfig(taggers=("x.toml",))
    run = Run(folder, RunConfig(models={"head": ModelConfig(network=network)}))
    centres = np.array([window / 2 + hop * place for place in range(count)])
    centres[-1] -= hop / 2 * (count > 1)
    steps = on_steps(run, network, data, 0, centres[:, None])[:, 0]
    assert len(steps) == 298 // 4
    for step, time in enumerate(steps):
        first, last = 4 * step * 160, (4 * step + 3) * 160 + 400
        apart = np.abs(centres - (first + last) / 2 / 16_000)
        assert apart[centres == time].min() <= apart.min() + 1e-9


def test_the_steps_of_a_shorter_clip_are_those_of_its_features_repeated_frame_by_frame(tmp_path):
    """A clip of 1 s has 98 frames of 10 ms, so the 25th step of 4 frames begins at its third frame."""
    item, centres = clip("a.wav"), np.arange(100) / 100 + 0.005
    tagger = tagger_of(tmp_path, [item], [np.zeros((100, 2))], hop=0.01, window=0.01)
    inputs = heads.HeadInputs([tagger], EVENTS)
    data = Dataset(
        ["a.wav"], inputs, np.zeros((1, 3), np.float32), EVENTS, np.zeros(1, np.int8), seconds=[1.0]
    )
    network = HeadConfig(taggers=("x.toml",))
    run = Run(tmp_path, RunConfig(models={"head": ModelConfig(network=network)}))
    steps = on_steps(run, network, data, 0, centres[:, None], 998)[:, 0]
    begins = (4 * np.arange(998 // 4)) % 98
    assert_allclose(steps, begins * 0.01 + (3 * 0.01 + 0.025) / 2, atol=0.011)


@pytest.mark.parametrize("level", [-8.0, -20.0, -60.0])
def test_a_positive_clip_pulls_however_little_the_tagger_believes_in_it(level):
    """The derivative of the log-odds of a clip by those of its only window is the sigmoid of minus them."""
    head = Head(HeadConfig(taggers=("x.toml",)), 1)
    inputs = jnp.full((1, 2), level).at[0, 1].set(1.0)
    rows = heads.Rows(
        inputs,
        jnp.zeros(1, int),
        jnp.ones((1, 1)),
        jnp.ones(1),
        jnp.zeros(1),
        jnp.zeros((1, 1)),
        jnp.zeros((1, 1)),
    )
    fitted = {"events": jnp.ones(1, bool), "gain": jnp.ones(1), "penalty": jnp.zeros(())}
    params = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
    slope = jax.grad(lambda params: heads._loss(head, {"fitted": fitted}, rows, params))(params)
    assert_allclose(slope["b"], [-1 / (1 + np.exp(level))], rtol=1e-3)


# Whole runs.


@pytest.fixture(scope="module")
def untried():
    """Models of these tests need no trial in a subprocess."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "try_apart", lambda module, path, *more, runtime: None)
        yield


def write_tagger(folder, samples, pitches, rate, text=""):
    """A tagger of levels at `pitches`; returns the path of its description."""
    write_spectrum(folder / "model.onnx", samples, pitches, rate)
    path = folder / "tagger.toml"
    path.write_text(f'file = "model.onnx"\nlayer = "levels"\nsample_rate = {rate}\n{text}\n')
    return str(path)


MAPPED = {"siren": ("A", "D"), "bell": ("B",)}


@pytest.fixture(scope="module")
def heads_on_demo(tiny_config, tmp_path_factory, untried):
    """The function (folder) -> settings of a run whose head teaches; its tagger has classes of two events."""
    folder = tmp_path_factory.mktemp("tagger")
    (folder / "names.txt").write_text("A\nB\nC\nD\n")
    lines = [f"{event} = {list(names)}".replace("'", '"') for event, names in MAPPED.items()]
    text = "\n".join(['classes = "names.txt"', "[events]", *lines])
    taggers = {"taggers": (write_tagger(folder, 1600, (440, 880, 1760, 3520), 16_000, text),)}
    head = HeadConfig(components=2, fewest=2, penalties=(0.01, 0.1, 1.0), **taggers)
    models = {
        "zero-shot": ModelConfig(network=HeadConfig(fit=False, **taggers)),
        "head": ModelConfig(network=head),
        "student": ModelConfig(network=LSTMConfig(hidden_size=4), teachers=("head",)),
    }
    data = DemoData(clip_seconds=0.4, counts=(48, 16, 20))
    recipe = ClipRecipe(batch_size=8, epochs=1, class_weight=0.1)
    settings = {"models": models, "data": data, "recipe": recipe, "augment": AugmentConfig(views=1)}
    return lambda runs: tiny_config(runs, cache=str(folder / "cache"), **settings)


@pytest.fixture(scope="module")
def whole(heads_on_demo, tmp_path_factory):
    return train(heads_on_demo(tmp_path_factory.mktemp("runs")))


def test_heads_are_rows_of_the_results_with_the_bytes_of_their_taggers(whole):
    rows = whole.results["models"]
    assert list(rows) == ["zero-shot", "head", "student"]
    model = Path(whole.config.models["head"].network.taggers[0]).parent / "model.onnx"
    for name in ("zero-shot", "head"):
        # The tagger, and w and b for three events: of two components, of scores and of the layer.
        inputs = 2 * (1 if name == "zero-shot" else 2)
        assert rows[name]["bytes"] == model.stat().st_size + 4 * 3 * (inputs + 1)
        assert "multiply_adds" not in rows[name] and "parameters" not in rows[name]
    assert rows["student"]["multiply_adds"] > 0
    report = (whole.folder / "report.html").read_text()
    assert all(f">{name}<" in report for name in rows)


def test_a_head_teaches_the_recordings_and_a_view_of_each(whole):
    clips = [each.name for each in whole.clips if each.split == "train"]
    views, path = [f"view:1:{name}" for name in clips], whole.model_folder("head") / "teaching.npz"
    taught = read_logits(path, [*clips, *views], whole.config.data.events)
    assert len(taught) == 2 * len(clips) and np.isfinite(taught).all()
    assert (np.abs(taught[: len(clips)] - taught[len(clips) :]) > 1e-3).any(axis=1).mean() > 0.9
    # A pass is over both, in batches of 8.
    assert read_epochs(whole.model_folder("student"))[-1]["step"] == 2 * len(clips) // 8


def test_a_student_learns_the_classes_that_are_present_and_is_deployed_without_them(whole):
    clips = [each for each in whole.clips if each.split == "train"]
    tagger = run_tagger(Path(whole.config.models["head"].network.taggers[0]), clips, whole.cache)
    posteriors = np.stack([tagger.outputs(clip)[:, :4].max(axis=0) for clip in range(len(clips))])
    learned = read_classes(whole, "student", 2 * len(clips))
    assert learned.shape[1] == whole.classes("student") == 4
    assert_allclose(learned[: len(clips)], np.clip(posteriors, 1e-3, 1 - 1e-3), atol=1e-3)
    variables = whole.best_variables("student")
    params = dict(variables["params"])
    before, after = whole.new_state("student", whole.norm([])).params["classes"], params.pop("classes")
    for layer in ("output", "attention"):
        assert np.abs(after[layer]["kernel"] - before[layer]["kernel"]).max() > 1e-4
    alone = {**variables, "params": params}
    network, shape = whole.config.models["student"].network, whole.shape
    features = jax.random.normal(jax.random.key(0), (2, *shape))
    assert_array_equal(*(build_model(network, 3).apply(each, features) for each in (variables, alone)))
    assert whole.results["models"]["student"]["bytes"] == packed_bytes(alone["params"], network.quant)
    with refused(r"models/head/classes\.npz: expected posteriors of 3 clips"):
        read_classes(whole, "student", 3)


def test_two_heads_give_their_classes_side_by_side_and_taggers_without_classes_none(tmp_path, monkeypatch):
    """Logits beyond ±88, whose posteriors are 0 or 1 in float32, too."""
    logits = np.array([[[-200.0, 0.0, -9.0]], [[200.0, 1.0, -9.0]]])
    clips = [clip("a.wav"), clip("b.wav")]

    def run_tagger(path, clips, cache, channel):
        names = [] if path.stem == "without" else ["p", "q", "r"]
        return tagger_of(tmp_path / "rows", clips, logits, classes=names)

    monkeypatch.setattr(classes, "run_tagger", run_tagger)
    models = {
        name: ModelConfig(network=HeadConfig(taggers=(f"{name}.toml",))) for name in ("x", "y", "without")
    }
    for name, teachers in TEACHERS.items():
        models[name] = ModelConfig(network=LSTMConfig(), teachers=teachers)
    recipe = ClipRecipe(class_weight=0.1)
    run = Run(tmp_path, RunConfig(recipe=recipe, data=ManifestData(events=EVENTS), models=models))
    data = Dataset(["a.wav", "b.wav"], [], np.zeros((2, 3)), EVENTS, np.ones(2, np.int8), clips=clips)
    classes.write_classes(run, data)
    expected = np.array([[1e-3, 0.5], [1 - 1e-3, 1 / (1 + np.exp(-1))]])
    for name, count in (("one", 1), ("two", 2)):
        assert run.classes(name) == 2 * count
        assert_allclose(read_classes(run, name, 2), np.tile(expected, count), atol=1e-3)
    assert run.classes("none") == 0 and read_classes(run, "none", 2) is None


def test_zero_shot_results_are_those_of_the_taggers_classes(whole):
    tagger = Path(whole.config.models["zero-shot"].network.taggers[0])
    clips, events = [each for each in whole.clips if each.split == "test"], whole.config.data.events
    expected = auc(targets(clips, events), np.nan_to_num(tagger_logits(tagger, clips, events, whole.cache)))
    found = whole.results["models"]["zero-shot"]["metrics"]["events"]
    assert_allclose([found[event]["auc"] for event in events], 100 * expected, atol=1e-6)


def test_a_finished_head_is_not_fitted_again(whole, monkeypatch):
    def refuse(*_):
        raise AssertionError

    before = log_of(whole.folder, "head")
    monkeypatch.setattr(heads, "_fit", refuse)
    train(replace(whole.config))
    assert log_of(whole.folder, "head") == before and len(before) == 2 * 3


def test_a_head_that_is_stopped_between_penalties_ends_bit_identical(
    whole, heads_on_demo, tmp_path, monkeypatch
):
    def track(items, count, title):
        for step, item in enumerate(items, 1):
            if (title, step) == ("head", 2):
                signal.raise_signal(signal.SIGINT)
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(loop, "track", track)
        with pytest.raises(KeyboardInterrupt, match="head: stopped at step 2"):
            train(heads_on_demo(tmp_path))
    again = train(heads_on_demo(tmp_path))
    assert_same_end(again.folder, whole.folder)
    for file in ("inputs.npz", "teaching.npz"):
        first, second = (run.model_folder("head") / file for run in (whole, again))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_a_head_on_tones_teaches_when_they_are(tmp_path, untried):
    pytest.importorskip("sed_scores_eval", reason="the extra sed is not installed")
    write_tones(tmp_path / "tones")
    (tmp_path / "tagger").mkdir()
    hop = "hop_seconds = 0.05"
    tagger = write_tagger(tmp_path / "tagger", 1600, (*PITCHES.values(), 1000), 8000, hop)
    models = {
        "head": ModelConfig(network=HeadConfig(taggers=(tagger,), components=None)),
        "student": ModelConfig(network=CRNN, teachers=("head",), learning_rate=0.02),
    }
    config = config_of(tmp_path / "tones", tmp_path / "runs", models=models)
    run = train(config)
    rows = run.results["models"]
    assert list(rows) == ["head", "student"]
    assert rows["head"]["metrics"]["average"]["auc"] > 95
    assert rows["student"]["metrics"]["average"]["auc"] > 90
    clips = [each for each in run.clips if each.split == "train"]
    logits = read_step_logits(
        run.model_folder("head") / "teaching.npz", [each.name for each in clips], tuple(PITCHES)
    )
    assert logits.steps.shape == (72, 61 // 4, 2) and (logits.receptive_field, logits.stride) == (4, 4)
    assert (logits.precision > 0.9).all()
    # A step's four windows of 256 samples, one every 128, are centred at 320 samples.
    times = (320 + 512 * np.arange(61 // 4)) / 8000
    inside, outside = [], []
    for each, steps in zip(clips, logits.steps):
        for event, onset, offset in each.annotations or ():
            column = steps[:, list(PITCHES).index(event)]
            inside.append(column[(times > onset) & (times < offset)].mean())
            outside += column[(times < onset - 0.1) | (times > offset + 0.1)].tolist()
    assert np.median(inside) > np.quantile(outside, 0.9)
    # The same command ends at once, and a run that is begun anew in the same bits.
    again = train(replace(config, name="again"))
    for name in models:
        assert log_of(again.folder, name) == log_of(run.folder, name)
