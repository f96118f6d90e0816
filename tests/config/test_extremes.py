"""Numbers at and beyond the ends of what makes sense: each is refused in a line, or works."""

import dataclasses
import math
import typing
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

import qkd_jax.config as cfg
from qkd_jax.audio import log_mel_numpy
from qkd_jax.audio.augment import augment
from qkd_jax.audio.log_mel import log_mel
from qkd_jax.commands.detect import DetectOptions, chosen_events
from qkd_jax.detector import events
from qkd_jax.errors import InputError, explain
from qkd_jax.run_folder.run import Run
from qkd_jax.run_folder.state import make_optimizer
from qkd_jax.training.clips import make_loss
from qkd_jax.training.run import _train_model
from tests.detectors import PLAIN, random_detector
from tests.faults import refused_in_one_line
from tests.recordings import noise, traced

WHOLE = [0, -1, 2, 1_000_001, 10**30]
NUMBERS = [0.0, -1.0, 1e6, 1e308, math.nan, math.inf, -math.inf, 1e-300, 5e-324]
DETECTOR = random_detector(PLAIN, mels=8)
SOUND = noise(24_000)
FEATURES = cfg.FeatureConfig(n_mels=8)


def extreme(*configs):
    """Each numeric field of `configs` with each number, as far as `configs` take them."""
    return [
        pytest.param(config, name, value, id=f"{type(config).__name__}-{name}-{value:g}")
        for config in configs
        for name, hint in typing.get_type_hints(type(config)).items()
        for kind, values in ((int, WHOLE), (float, NUMBERS))
        if kind in {hint, *typing.get_args(hint)}
        for value in values
    ]


def changed(config, name, value):
    """`config` with one field changed; None if the field refuses it in words."""
    try:
        return replace(config, **{name: value})
    except ValidationError as refusal:
        message = explain(refusal)
    assert "expected" in message and "got" in message
    return None


@pytest.mark.parametrize(("config", "name", "value"), extreme(cfg.EventConfig()))
def test_events_are_found_with_any_number_that_their_settings_take(config, name, value):
    if (config := changed(config, name, value)) is None:
        return
    detector = replace(DETECTOR, event_config=config)
    found, _, most = traced(lambda: list(events.detect(detector, [SOUND])))
    assert all(math.isfinite(event.onset + event.offset + event.peak) for event in found)
    assert most < 100e6


def test_a_median_of_many_classes_takes_little_memory():
    detector = random_detector(PLAIN, events=200)
    rule = events.event_rule(replace(detector, event_config=cfg.EventConfig(median_seconds=20.0)))
    logits = noise(200 * 1100).reshape(1100, 200)
    _, _, most = traced(lambda: events.push(rule, events.start(rule), logits))
    assert most < 60e6  # copies of all 100 windows take 160 MB


def test_a_median_of_too_many_steps_is_refused():
    features = replace(DETECTOR.features, hop_length=1)
    detector = replace(DETECTOR, features=features, event_config=cfg.EventConfig(median_seconds=1.0))
    message = r"--events.median-seconds: expected at most 0.625 \(10000 of the detector's steps\), got 1"
    with refused_in_one_line(message):
        next(events.detect(detector, [SOUND]))


@pytest.mark.parametrize("word", ["0", "-1", "1e6", "1e308", "nan", "inf", "1e-300", "5e-324", "dog=1e-320"])
def test_thresholds_are_probabilities(word):
    try:
        config = chosen_events(DetectOptions(threshold=(word,)), DETECTOR.events)
    except InputError as refusal:
        message = str(refusal)
    else:
        message = ""
    if message:
        assert message.startswith("--threshold: expected a number between 0 and 1, or EVENT=NUMBER, got")
        return
    found = list(events.detect(replace(DETECTOR, event_config=replace(config, end=1e-300)), [SOUND]))
    assert {event.event for event in found} and all(event.peak > 0 for event in found)


@pytest.mark.parametrize(("config", "name", "value"), extreme(FEATURES))
def test_features_are_finite_with_any_number_that_their_settings_take(config, name, value):
    if (config := changed(config, name, value)) is None:
        return
    for sound in (SOUND[:2000], np.zeros(2000, np.float32)):
        assert np.isfinite(log_mel_numpy.log_mel(config, sound)).all()
        assert np.isfinite(log_mel(sound, config)).all()


def test_mel_filters_without_width_are_refused():
    with pytest.raises(ValidationError) as caught:
        cfg.FeatureConfig(fmin=100.0, fmax=100.5)
    assert explain(caught.value) == "fmin, fmax: expected at least 1 Hz apart, got 100 and 100.5"


@pytest.mark.slow
@pytest.mark.parametrize(("config", "name", "value"), extreme(cfg.ClipRecipe(), cfg.EventRecipe()))
def test_an_update_is_finite_with_any_number_that_its_recipe_takes(config, name, value):
    if (recipe := changed(config, name, value)) is None:
        return
    params = {"w": jnp.ones((2, 3))}
    optimizer = make_optimizer(recipe, recipe.learning_rate, 10)
    state, gradient = optimizer.init(params), {"w": jnp.full((2, 3), 0.1)}
    for _ in range(2):
        updates, state = optimizer.update(gradient, state, params)
        assert np.isfinite(updates["w"]).all()
    if isinstance(recipe, cfg.ClipRecipe):
        weight = 2.0 if isinstance(recipe.positive_weight, str) else recipe.positive_weight
        loss = make_loss(recipe, jnp.full(3, weight), np.ones(3, bool))
        assert np.isfinite(loss(params["w"], {"labels": params["w"], "teacher_logits": -params["w"]}))
    else:
        # A median longer than any clip would need memory in proportion to it.
        assert recipe.median < 10_000


@pytest.mark.slow
@pytest.mark.parametrize(("config", "name", "value"), extreme(cfg.AugmentConfig(time_masks=1, mel_masks=1)))
def test_augmented_features_are_finite_with_any_number(config, name, value):
    if (config := changed(config, name, value)) is None:
        return
    features, labels = jnp.asarray(noise(4 * 30 * 8).reshape(4, 30, 8)), jnp.ones((4, 2))
    assert all(np.isfinite(part).all() for part in augment(jax.random.key(0), features, labels, config))


@pytest.mark.parametrize(
    ("config", "name", "value"),
    extreme(cfg.EventObjective(), cfg.ModelConfig(network=cfg.LSTMConfig())),
)
def test_weights_and_rates_of_models_hold_in_float32(config, name, value):
    if (config := changed(config, name, value)) is None:
        return
    number = getattr(config, name)
    assert np.isfinite(np.float32(number)) and (name != "temperature" or number >= 0.01)
    assert name != "epochs" or number <= 1_000_000


def test_a_batch_that_no_machine_can_hold_is_refused():
    with pytest.raises(ValidationError) as caught:
        cfg.RunConfig(data=cfg.DemoData(clip_seconds=86400.0))
    message = "recipe.batch_size, data.clip_seconds: expected a batch of at most 16 GB, got 32 clips of"
    assert explain(caught.value) == f"{message} 8639998 frames, 71 GB"
    with pytest.raises(ValidationError, match=r"recipe\.strong, data\.clip_seconds: expected a batch"):
        cfg.RunConfig(recipe=cfg.EventRecipe(strong=10**30), data=cfg.DESEDData())


def test_more_updates_than_the_counter_holds_are_refused(tiny_config, tmp_path):
    run = Run(tmp_path, tiny_config(tmp_path, recipe=cfg.ClipRecipe(batch_size=8, epochs=1_000_000)))
    recipe = SimpleNamespace(batches=lambda *_: (3000, None))
    with refused_in_one_line(r"--models\.plain\.epochs: expected at most 715827, since .* 3000 updates"):
        _train_model(run, "plain", recipe, {}, (SOUND, SOUND))


def test_every_number_of_these_settings_is_tried():
    tried = {case.values[1] for case in extreme(cfg.EventConfig(), FEATURES, cfg.ClipRecipe())}
    assert {
        "median_seconds",
        "history_seconds",
        "end",
        "floor",
        "n_fft",
        "temperature",
        "positive_weight",
    } < tried
    for config in (cfg.EventConfig(), FEATURES):
        numbers = {
            name for name, value in dataclasses.asdict(config).items() if isinstance(value, int | float)
        }
        assert numbers <= tried
