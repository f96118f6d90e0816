import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import QuantConfig, StudentConfig
from qkd_jax.models.build import build_model
from qkd_jax.nn.lstm import lstm_scan

FEATURES = 2 * jax.random.normal(jax.random.key(0), (4, 12, 6)) - 5
NORM = {"normalize": {"mean": jnp.linspace(-6.0, -4.0, 6), "std": jnp.linspace(1.0, 3.0, 6)}}


@functools.cache
def parameters(layers):
    """Those of every student of so many layers: pooling and quantization add none."""
    model = build_model(StudentConfig(units=8, layers=layers), events=3)
    params = jax.jit(model.init)(jax.random.key(1), FEATURES)["params"]
    # An output bias that is not zero, so that its absence would show.
    return {**params, "Dense_0": {**params["Dense_0"], "bias": jnp.array([1.0, -2.0, 3.0])}}


def student(layers=1, **settings):
    model = build_model(StudentConfig(units=8, layers=layers, **settings), events=3)
    return jax.jit(model.apply), {"params": parameters(layers), "norm": NORM}


@pytest.mark.parametrize(
    ("pooling", "layers", "quant"),
    [
        ("last", 1, QuantConfig()),
        ("last", 2, QuantConfig.paper(8)),
        ("mean", 1, QuantConfig.paper(8)),
        ("mean", 2, QuantConfig()),
    ],
)
def test_logits_are_those_of_the_scan_by_hand(pooling, layers, quant):
    apply, variables = student(layers, pooling=pooling, quant=quant)
    lstm, output = variables["params"]["lstm"], variables["params"]["Dense_0"]
    assert len(lstm) == layers

    mean, std = (NORM["normalize"][key][None, None] for key in ("mean", "std"))
    outputs, _ = jax.jit(lstm_scan, static_argnames="quant")(lstm, (FEATURES - mean) / std, quant=quant)
    pooled = outputs[:, -1] if pooling == "last" else outputs.sum(axis=1) / 12
    expected = pooled @ output["kernel"] + output["bias"][None]
    np.testing.assert_allclose(apply(variables, FEATURES), expected, atol=1e-5)


@pytest.mark.parametrize("quant", [QuantConfig(), QuantConfig.paper(8)], ids=["float", "8 bits"])
def test_attention_weighs_the_logits_of_all_states_for_each_event(quant):
    model = build_model(StudentConfig(units=8, pooling="attention", quant=quant), events=3)
    kernel, bias = jax.random.normal(jax.random.key(2), (8, 3)), jnp.array([0.5, 0.0, -0.5])
    params = {**parameters(1), "attention": {"kernel": 5 * kernel, "bias": bias}}
    mean, std = (NORM["normalize"][key][None, None] for key in ("mean", "std"))
    outputs, _ = lstm_scan(params["lstm"], (FEATURES - mean) / std, quant=quant)
    read, attend = (
        {key: np.asarray(params[part][key]) for key in ("kernel", "bias")}
        for part in ("Dense_0", "attention")
    )
    states = np.asarray(outputs)
    scores, weights = (states @ layer["kernel"] + layer["bias"] for layer in (read, attend))
    weights = np.exp(weights) / np.exp(weights).sum(axis=1, keepdims=True)
    logits = model.apply({"params": params, "norm": NORM}, FEATURES)
    np.testing.assert_allclose(logits, (weights * scores).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize(("stack", "steps"), [(2, 6), (5, 2), (12, 1)])
def test_a_step_takes_so_many_frames_and_the_rest_is_dropped(stack, steps):
    model = build_model(StudentConfig(units=8, stack=stack), events=3)
    norm = {"normalize": {"mean": jnp.zeros(6), "std": jnp.ones(6)}}
    variables = model.init(jax.random.key(1), FEATURES) | {"norm": norm}
    frames = np.asarray(FEATURES)
    stacked = np.stack(
        [
            np.concatenate([frames[:, step * stack + k] for k in range(stack)], axis=1)
            for step in range(steps)
        ],
        axis=1,
    )
    _, state = lstm_scan(variables["params"]["lstm"], jnp.asarray(stacked))
    output = variables["params"]["Dense_0"]
    expected = np.asarray(state[-1].h) @ np.asarray(output["kernel"]) + np.asarray(output["bias"])
    np.testing.assert_allclose(model.apply(variables, FEATURES), expected, atol=1e-5)


def test_quantization_is_what_the_settings_say():
    (in_float, variables), (at_4_bits, _) = student(), student(quant=QuantConfig.paper(4))
    difference = np.abs(in_float(variables, FEATURES) - at_4_bits(variables, FEATURES)).max()
    assert 1e-3 < difference < 0.5


@pytest.mark.parametrize("quant", [QuantConfig(), QuantConfig.paper(8)], ids=["float", "8 bits"])
def test_batch_mates_do_not_matter(quant):
    apply, variables = student(quant=quant)
    together = apply(variables, FEATURES)
    np.testing.assert_allclose(apply(variables, FEATURES[2:3])[0], together[2], atol=1e-5)
    mates = FEATURES.at[:2].set(1e3)
    np.testing.assert_allclose(apply(variables, mates)[2], together[2], atol=1e-5)


def test_the_forget_bias_is_chosen_for_the_length_of_the_clips():
    """Chrono initialization: log U[1, steps - 1], so that the last state can remember the whole clip."""
    model = build_model(StudentConfig(units=64), events=3)
    bias = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 100, 6)))["params"]["lstm"][0]["b"][:64]
    assert bias.min() >= 0
    # The largest of 64 draws is above half the range, but for odds of 2^-64.
    assert np.log(50) < bias.max() <= np.log(99)
