import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import LSTMConfig, QuantConfig
from qkd_jax.models import lstm as module
from qkd_jax.models.build import build_model
from qkd_jax.nn.conv import conv_frames
from qkd_jax.nn.lstm import lstm_scan
from tests.oracles import recovered

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FEATURES = 2 * jax.random.normal(jax.random.key(0), (4, 12, 6)) - 5
NORM = {"normalize": {"mean": jnp.linspace(-6.0, -4.0, 6), "std": jnp.linspace(1.0, 3.0, 6)}}
NORMALIZED = (FEATURES - NORM["normalize"]["mean"][None, None]) / NORM["normalize"]["std"][None, None]
FLOAT, PAPER8 = QuantConfig(), QuantConfig.paper(8)
CHANNEL4 = QuantConfig(weights=4, activations=4, gates=4, cell=16, ranges="channel")

fast_scan = jax.jit(lstm_scan, static_argnames="quant")
fast_conv = jax.jit(conv_frames, static_argnames=("strides", "x_bits", "w_bits", "per_channel"))


@functools.cache
def variables_of(layers, convolutions, time_strides):
    """Variables of any LSTM of this shape: quantization adds none, pooling by attention some."""
    config = LSTMConfig(hidden_size=8, layers=layers, convolutions=convolutions, time_strides=time_strides)
    variables = jax.jit(build_model(config, events=3).init)(jax.random.key(1), FEATURES)
    rng = np.random.default_rng(0)

    def moved(path, leaf):
        # No bias is zero and every statistic differs from its initial value, so that leaving one out shows.
        return leaf if path[1].key == "lstm" else leaf + jnp.asarray(rng.uniform(0.2, 0.8, leaf.shape), "f4")

    return jax.tree.map_with_path(moved, variables) | {"norm": NORM}


def network(layers=1, convolutions=(), time_strides=0, **settings):
    shape = {"layers": layers, "convolutions": convolutions, "time_strides": time_strides}
    model = build_model(LSTMConfig(hidden_size=8, **shape, **settings), events=3)
    return jax.jit(model.apply), variables_of(layers, convolutions, time_strides)


def linear(x, layer, bits):
    """Each vector by its own range, the matrix by one."""
    return recovered(x, bits, -1) @ recovered(layer["w"], bits, (0, 1)) + np.asarray(layer["b"])


OUTPUT3, OUTPUT4 = QuantConfig(output=3), QuantConfig(output=4)
LAST = [("last", 1, FLOAT), ("last", 2, PAPER8), ("last", 1, OUTPUT4)]
MEAN = [("mean", 1, QuantConfig(weights=8, output=3)), ("mean", 2, FLOAT), ("mean", 1, PAPER8)]
ATTENTION = [("attention", 1, quant) for quant in (FLOAT, PAPER8, OUTPUT4, OUTPUT3)]


@pytest.mark.parametrize(("pooling", "layers", "quant"), [*LAST, *MEAN, *ATTENTION], ids=str)
def test_logits_of_clips_and_steps_are_those_of_the_scan_by_hand(pooling, layers, quant):
    apply, variables = network(layers, pooling=pooling, quant=quant)
    w, b = 5 * jax.random.normal(jax.random.key(2), (8, 3)), jnp.array([0.5, 0.0, -0.5])
    params = {**variables["params"], "attention": {"w": w, "b": b}}
    assert len(params["lstm"]) == layers
    states, _ = fast_scan(params["lstm"], NORMALIZED, quant=quant)
    steps, scores = (linear(states, params[part], quant.output) for part in ("output", "attention"))
    if pooling == "attention":
        weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        expected = (weights * steps).sum(axis=1)
    else:
        read = states[:, -1] if pooling == "last" else states.sum(axis=1) / 12
        expected = linear(read, params["output"], quant.output)
    variables = {"params": params, "norm": NORM}
    np.testing.assert_allclose(apply(variables, FEATURES), expected, atol=1e-5)
    config = LSTMConfig(hidden_size=8, layers=layers, pooling=pooling, quant=quant)
    step_logits = functools.partial(build_model(config, events=3).apply, method="step_logits")
    logits = jax.jit(step_logits)(variables, FEATURES)
    np.testing.assert_allclose(logits.steps, steps, atol=1e-5)
    np.testing.assert_allclose(logits.clip, apply(variables, FEATURES), atol=1e-6)
    assert logits.embedding is None


@pytest.mark.parametrize("quant", [FLOAT, PAPER8, QuantConfig.integer(8)], ids=["float", "paper", "integer"])
def test_logits_of_classes_are_the_states_weighted_by_a_softmax_over_time(quant):
    """The states are those of the events' logits, read in float; events and steps don't depend on classes."""
    config = LSTMConfig(hidden_size=8, pooling="attention", quant=quant)
    model, plain = build_model(config, events=3, classes=5), build_model(config, events=3)
    variables = jax.jit(model.init)(jax.random.key(1), FEATURES) | {"norm": NORM}
    logits, own = (jax.jit(functools.partial(m.apply, method="step_logits")) for m in (model, plain))
    found, without = logits(variables, FEATURES), own(variables, FEATURES)
    np.testing.assert_array_equal(found.clip, without.clip)
    np.testing.assert_array_equal(found.steps, without.steps)
    assert without.classes is None
    # An output layer that is the identity gives the states themselves.
    params, identity = variables["params"], {"w": jnp.eye(8), "b": jnp.zeros(8)}
    read = quant if quant.scheme == "integer" else dataclasses.replace(quant, output=32)
    wide = build_model(dataclasses.replace(config, pooling="last", quant=read), events=8)
    step_logits = jax.jit(functools.partial(wide.apply, method="step_logits"))
    states = step_logits(variables | {"params": params | {"output": identity}}, FEATURES).steps
    layer, states = jax.tree.map(np.float64, params["classes"]), np.float64(states)
    steps, scores = (states @ layer[n]["kernel"] + layer[n]["bias"] for n in ("output", "attention"))
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    tolerance = 0.03 if quant == QuantConfig.integer(8) else 1e-5  # there, an output layer is of 8 bits
    np.testing.assert_allclose(found.classes, (weights * steps).sum(axis=1), atol=tolerance)


def front(variables, quant, *, train):
    """Convolutions of 3 and 5 channels, the first of which halves the frames, and their new statistics."""
    params, statistics = variables["params"]["front"], variables["batch_stats"]["front"]
    x, new = NORMALIZED[..., None], {}
    for index, strides in enumerate([(2, 2), (1, 2)]):
        bits = {"x_bits": quant.activations, "w_bits": quant.weights}
        per_channel = quant.ranges == "channel"
        y = fast_conv(params[f"w{index}"], x, strides=strides, **bits, per_channel=per_channel)
        y, name = np.float64(y), f"BatchNorm_{index}"
        norm, running = (jax.tree.map(np.float64, tree[name]) for tree in (params, statistics))
        now = {"mean": y.mean(axis=(0, 1, 2)), "var": y.var(axis=(0, 1, 2))}
        new[name] = {key: 0.9 * running[key] + 0.1 * now[key] for key in now}
        by = now if train else running
        y = (y - by["mean"]) / np.sqrt(by["var"] + 1e-5) * norm["scale"] + norm["bias"]
        x = jnp.asarray(np.maximum(y, 0), jnp.float32)
    return jnp.concatenate([x[:, :, band] for band in range(x.shape[2])], axis=-1), new


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("quant", [FLOAT, PAPER8, CHANNEL4], ids=["float", "8 bits", "4 bits per channel"])
def test_convolutions_and_batch_norms_come_before_the_scan(quant, train):
    _, variables = network(convolutions=(3, 5), time_strides=1)
    config = LSTMConfig(hidden_size=8, convolutions=(3, 5), time_strides=1, quant=quant)
    apply = jax.jit(functools.partial(build_model(config, 3).apply, train=train, mutable=["batch_stats"]))
    logits, changed = apply(variables, FEATURES)

    x, statistics = front(variables, quant, train=train)
    assert x.shape == (4, 3, 10)
    outputs, _ = fast_scan(variables["params"]["lstm"], x, quant=quant)
    expected = linear(outputs[:, -1], variables["params"]["output"], 32)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    if not train:
        statistics = variables["batch_stats"]["front"]
    for got, wanted in zip(*map(jax.tree.leaves, (changed["batch_stats"]["front"], statistics))):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "convolutions", "time_strides"), [(998, 4, 3), (998, 4, 0), (97, 2, 1), (98, 2, 2), (7, 3, 0)]
)
def test_steps_are_those_that_the_model_makes(frames, convolutions, time_strides, monkeypatch):
    config, made = LSTMConfig(hidden_size=2, convolutions=(1,) * convolutions, time_strides=time_strides), []

    def scan(params, x, **settings):
        made.append(x.shape[-2])
        return lstm_scan(params, x, **settings)

    monkeypatch.setattr(module, "lstm_scan", scan)
    features = jax.ShapeDtypeStruct((1, frames, 6), jnp.float32)
    jax.eval_shape(build_model(config, events=1).init, jax.random.key(0), features)
    assert made == [config.steps(frames)]


@pytest.mark.parametrize("convolutions", [(), (3, 5)], ids=["frames", "convolutions"])
@pytest.mark.parametrize("quant", [FLOAT, PAPER8], ids=["float", "8 bits"])
def test_batch_mates_do_not_matter(quant, convolutions):
    apply, variables = network(convolutions=convolutions, quant=quant)
    together = apply(variables, FEATURES)
    np.testing.assert_allclose(apply(variables, FEATURES[2:3])[0], together[2], atol=1e-5)
    mates = FEATURES.at[:2].set(1e3)
    np.testing.assert_allclose(apply(variables, mates)[2], together[2], atol=1e-5)


def test_the_forget_bias_is_chosen_for_the_length_of_the_clips():
    """Chrono initialization: log U[1, steps - 1], so that the last state can remember the whole clip."""
    model = build_model(LSTMConfig(hidden_size=64), events=3)
    bias = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 100, 6)))["params"]["lstm"][0]["b"][:64]
    assert bias.min() >= 0
    # The largest of 64 draws is above half the range, but for odds of 2^-64.
    assert np.log(50) < bias.max() <= np.log(99)
