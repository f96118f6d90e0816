"""JAX_ENABLE_X64=1, which many set for other programs, changes nothing: same bits, same types."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qkd_jax.config as cfg
from qkd_jax import (
    dequantize,
    distillation_loss,
    export,
    fake_quant,
    log_mel,
    lstm_init,
    lstm_scan,
    qdot,
    quantize,
    to_jax,
    train,
    weighted_bce,
)
from qkd_jax.config import CRNNConfig, DenseNetConfig, LSTMConfig, QuantConfig, ResNetConfig
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.folder import load_run
from qkd_jax.run_folder.state import init_state, make_optimizer
from qkd_jax.training.step import make_timed_step, make_train_step
from tests.detectors import FRONT, random_detector
from tests.networks import timed_batch
from tests.recordings import noise
from tests.tones import config_of, write_tones
from tests.training.runs import assert_same_end, run
from tests.trees import assert_equal

WIDE = {**os.environ, "JAX_ENABLE_X64": "1"}
FRAMES, MELS = 24, 8
FEATURES = noise(4 * FRAMES * MELS).reshape(4, FRAMES, MELS)
NORM = (np.zeros(MELS, np.float32), np.ones(MELS, np.float32))
CONVOLUTIONS = LSTMConfig(convolutions=(3, 4), time_strides=1, hidden_size=4, pooling="attention")
SMALL = {"channels": (4, 4), "pools": ((2, 2), (1, 2)), "hidden_size": 4, "layers": 1}
NETWORKS = {
    "float": CONVOLUTIONS,
    "paper": LSTMConfig(hidden_size=4, quant=QuantConfig.paper(4)),
    "integer": CONVOLUTIONS.quantized(QuantConfig.integer(4)),
    "densenet": DenseNetConfig(blocks=(1, 1), growth=4, stem=4),
    "resnet": ResNetConfig(blocks=(1, 1), stem=4),
}
TIMED = {
    "student": CRNNConfig(**SMALL, trunk="se"),
    "mean_step": CRNNConfig(**SMALL, quant=QuantConfig.per_channel(8)),
    "ema_ste": CONVOLUTIONS.quantized(QuantConfig.integer(8)),
}
"""A network for each `EventObjective.update`."""


def both(compute):
    """What `compute` returns without and with x64."""
    results = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            results.append(compute())
    return results


def assert_same_types(compute):
    narrow, wide = both(lambda: jax.tree.map(str, jax.eval_shape(compute)))
    assert narrow == wide and "float32" in str(narrow) and "float64" not in str(wide)


def test_library_functions_give_float32_for_float32():
    x, w = noise(40).reshape(2, 4, 5), noise(15).reshape(5, 3)
    z, labels = noise(6).reshape(2, 3), np.float32([[1, 0, 1], [0, 1, 0]])

    def results():
        logits, targets = jnp.asarray(z), jnp.asarray(labels)
        arrays = {
            "params": lstm_init(jax.random.key(0), inputs=5, hidden_size=4, steps=10),
            "quantize": dequantize(quantize(jnp.asarray(w), 4)),
            "fake_quant": fake_quant(jnp.asarray(w), 4),
            "qdot": qdot(jnp.asarray(x), jnp.asarray(w)),
            "log_mel": log_mel(jnp.asarray(noise(4000))),
            "weighted": weighted_bce(logits, targets, 2.0),
            "distilled": distillation_loss(logits, targets, -logits, alpha=0.5, temperature=2.0),
        }
        arrays["scan"] = lstm_scan(arrays["params"], jnp.asarray(x), quant=QuantConfig.paper(4))[0]
        return jax.tree.map(np.asarray, arrays)

    narrow, wide = both(results)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype(np.float32)}
    assert_equal(wide, narrow)


@pytest.mark.parametrize("quant", [QuantConfig(), QuantConfig.paper(4), QuantConfig.integer(4)])
def test_an_lstm_and_its_gradient_keep_their_types(quant):
    def computed():
        params = lstm_init(jax.random.key(0), inputs=5, hidden_size=4, steps=10)
        more = {"exponents": jnp.zeros(2, jnp.int32)} if quant.scheme == "integer" else {}

        def scanned(weights):
            x = jnp.asarray(noise(40).reshape(2, 4, 5))
            return lstm_scan([weights | more], x, quant=quant)[0].sum()

        return jax.value_and_grad(scanned)(params[0])

    assert_same_types(computed)


def test_a_detector_in_jax_keeps_its_types():
    log_mel = noise(2 * 60 * 32).reshape(2, 60, 32)
    assert_same_types(lambda: to_jax(random_detector(FRONT))(jnp.asarray(log_mel)))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_update_of_a_clip_model_keeps_its_types(name):
    model, recipe = build_model(NETWORKS[name], events=2), cfg.ClipRecipe()
    batch = {"features": FEATURES, "labels": np.float32([[1, 0], [0, 1], [1, 1], [0, 0]])}
    optimizer = make_optimizer(recipe, 1e-3, 10)

    def updated():
        state = init_state(model, optimizer, (FRAMES, MELS), NORM, 0, average=True)
        update = make_train_step(
            model, optimizer, lambda logits, batch: weighted_bce(logits, batch["labels"]), ema_decay=0.9
        )
        return update(state, batch)

    assert_same_types(updated)


@pytest.mark.parametrize("update", TIMED)
def test_an_update_of_a_timed_model_keeps_its_types(update):
    network, recipe = TIMED[update], cfg.EventRecipe()
    model, optimizer = build_model(network, events=2), make_optimizer(recipe, 1e-3, 10)
    objective = cfg.EventObjective(update=update)
    rates = {"learning_rate": 1e-3, "ema_decay": 0.9}
    config = cfg.ModelConfig(network=network, teachers=("teacher",), objective=objective, **rates)

    def updated():
        state = init_state(model, optimizer, (FRAMES, MELS), NORM, 0, average=True)
        if update == "mean_step":
            mean = optimizer.init(state.average["params"])
            state = replace(state, opt_state={"student": state.opt_state, "mean": mean})
        batch = timed_batch("sswu", FRAMES, features=FEATURES)
        return make_timed_step(model, config, recipe, 10)(state, batch)

    assert_same_types(updated)


@pytest.mark.slow
def test_a_run_resumes_with_the_same_bits(finished, config, folder, begin):
    """A model whose teacher was trained without x64; its checkpoints are read without again."""
    begin("four")
    with jax.enable_x64(True):
        train(config)
    assert_same_end(folder, finished)


@pytest.mark.slow
def test_a_run_and_its_exported_file_have_the_same_bits(config, tmp_path):
    quant = QuantConfig.integer(4)
    models = {
        "plain": cfg.ModelConfig(network=CONVOLUTIONS),
        "integer": cfg.ModelConfig(network=CONVOLUTIONS.quantized(quant), start="plain"),
    }
    exported = []
    for name, env in (("narrow", None), ("wide", WIDE)):
        settings = tmp_path / f"{name}.json"
        settings.write_text(cfg.to_json(replace(config, runs=str(tmp_path / name), models=models)))
        done = run(settings, env=env)
        assert done.returncode == 0, done.stderr
        with jax.enable_x64(env is not None):
            exported.append(export(tmp_path / name / "tiny", "integer").read_bytes())
    assert exported[0] == exported[1]
    assert_same_end(tmp_path / "wide" / "tiny", tmp_path / "narrow" / "tiny")


@pytest.mark.slow
def test_a_run_of_timed_events_gives_the_same_figures(tmp_path):
    pytest.importorskip("sed_scores_eval", reason="the extra sed is not installed")
    write_tones(tmp_path / "tones")
    results = []
    for name, env in (("narrow", None), ("wide", WIDE)):
        config = config_of(tmp_path / "tones", tmp_path / name)
        settings = tmp_path / f"{name}.json"
        settings.write_text(cfg.to_json(config))
        done = run(settings, env=env)
        assert done.returncode == 0, done.stderr
        results.append(load_run(tmp_path / name / config.name).results)
    assert results[0] == results[1]
