"""The LSTM of the integer-only scheme: training's forward pass equals the device's, code for code."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.config import ClipRecipe, FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector.file import check
from qkd_jax.detector.reference import advance, clip_logits, input_codes, start
from qkd_jax.models import lstm_integer as module
from qkd_jax.models.build import build_model
from qkd_jax.models.lstm_integer import calibrate, to_detector
from qkd_jax.run_folder.state import TrainState, init_state, make_optimizer, started_from
from qkd_jax.training.step import make_train_step
from tests.trees import assert_equal

FORMS = {
    "last": LSTMConfig(hidden_size=8),
    "convolutions": LSTMConfig(convolutions=(3, 5), time_strides=1, hidden_size=8),
    "attention": LSTMConfig(convolutions=(3,), hidden_size=6, pooling="attention"),
    "mean": LSTMConfig(layers=2, hidden_size=6, pooling="mean"),
}
MELS, EVENTS, SHAPE = 9, ("dog", "baby_cry", "gunshot"), (4, 90, 9)
FEATURES = FeatureConfig(n_mels=MELS)
CASES = [("last", 8, 8), ("convolutions", 4, 8), ("attention", 2, 2), ("mean", 3, 5)]


def network(form, weights=8, activations=8):
    return dataclasses.replace(FORMS[form], quant=QuantConfig.integer(weights, activations))


def detector_of(config, variables):
    return to_detector(config, variables, features=FEATURES, events=EVENTS, clip_seconds=3.0)


@cache
def shapes(config):
    features = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    return jax.eval_shape(build_model(config, len(EVENTS)).init, jax.random.key(0), features)


def random_variables(config, seed=0):
    """Parameters, statistics and exponents of a network whose codes are neither all 0 nor saturated."""
    rng, bits = np.random.default_rng(seed), config.quant.activations

    def random(path, leaf):
        part, name = path[1].key, path[-1].key
        if part == "lstm" and name == "b":
            gates = np.repeat([2.0, 0.0, 0.0, 1.0], leaf.size // 4)
            value = gates + rng.normal(0, 0.5, leaf.shape)
        elif part == "cell":
            value = rng.integers(8, 13, leaf.shape)
        elif part == "input":
            value = np.array(bits - 3)
        elif part == "convolutions":
            value = bits - 4 + np.arange(leaf.size)
        elif name.startswith("w"):
            value = rng.normal(0, 1.5 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape)
            value[..., 1] = 0  # as for a dead unit
        elif name in ("var", "std"):
            value = rng.uniform(1.5, 3, leaf.shape)
        elif name == "scale":
            value = rng.uniform(0.6, 2, leaf.shape) * rng.choice([-1, 1], leaf.shape)
        else:
            value = rng.normal(-4 if path[0].key == "norm" else 0.2, 0.3, leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree.map_with_path(random, shapes(config))


def random_features(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(-4, 2, shape) + np.sin(np.arange(shape[1])[:, None] / 9), jnp.float32)


def expected_logits(detector, features):
    return np.stack([clip_logits(detector, input_codes(detector, np.asarray(clip))) for clip in features])


def assert_logits(config, got, expected):
    in_floats = 0 if config.pooling == "last" else 1e-6  # as the pooling is
    np.testing.assert_allclose(got, expected, rtol=in_floats, atol=in_floats)


@cache
def observed(config):
    """The jitted model's logits, and inner values as floats: input, states, output layers."""

    @jax.jit
    def run(variables, features):
        inner = {"fake_quant_static": [], "lstm_scan": [], "integer_linear": []}

        def recorded(name):
            function = getattr(module, name)

            def call(*arguments, **settings):
                inner[name].append(function(*arguments, **settings))
                return inner[name][-1]

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in inner:
                patch.setattr(module, name, recorded(name))
            logits = build_model(config, len(EVENTS)).apply(variables, features, method="step_logits")
        ((h, final),) = inner["lstm_scan"]
        return logits, inner["fake_quant_static"][0], h, final, inner["integer_linear"]

    return run


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_code_of_each_step_equals_the_devices(case):
    config = network(*case)
    bits, half = config.quant.activations, 2 ** (config.quant.activations - 1)
    variables, features = random_variables(config), random_features()
    logits, inputs, h, finals, linear = observed(config)(variables, features)
    detector = detector_of(config, variables)
    check(detector)
    assert_logits(config, logits.clip, expected_logits(detector, features))
    for index, clip in enumerate(features):
        codes, state, hs = input_codes(detector, np.asarray(clip)), start(detector), []
        np.testing.assert_array_equal(inputs[index] * 2.0**detector.input_exponent, codes)
        for frame in codes:
            state, *outputs = advance(detector, state, frame[None])
            if len(outputs[0]):
                hs.append(state.cells[-1].h)
        np.testing.assert_array_equal(h[index] * half, hs)
        for layer, cell, final in zip(detector.lstm, state.cells, finals, strict=True):
            np.testing.assert_array_equal(final.h[index] * half, cell.h)
            np.testing.assert_array_equal(final.c[index] * 2.0**layer.cell_exponent, cell.c)
        _, outputs, attention = advance(detector, start(detector), codes)
        np.testing.assert_array_equal(logits.steps[index] * 512, outputs)
        if config.pooling == "attention":
            np.testing.assert_array_equal(linear[1][index] * 512, attention)
    assert np.unique(h).size > min(20, 2**bits - 2)
    assert np.abs(h).mean() < 0.9


def test_inputs_are_divided_as_on_the_device():
    # Ties, some of which a product with the reciprocal would round the other way.
    config = network("last")
    variables, std = random_variables(config), jnp.arange(3.0, 3 + 2 * MELS, 2)
    variables |= {"norm": {"normalize": {"mean": jnp.zeros(MELS), "std": 17 * std}}}
    detector = detector_of(config, variables)
    ties = np.random.default_rng(0).integers(-100, 100, SHAPE) + 0.5
    features = jnp.asarray(ties * 17 * np.asarray(std) * 2.0**-detector.input_exponent, jnp.float32)
    _, inputs, *_ = observed(config)(variables, features)
    np.testing.assert_array_equal(inputs * 2.0**detector.input_exponent, np.rint(ties))


def training(config):
    """The jitted gradient of a loss, as in training, with the logits."""
    model = build_model(config, len(EVENTS))

    def loss(params, variables, features):
        logits = model.apply({**variables, "params": params}, features, train=True)
        return jax.nn.softplus(logits).sum(), logits

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize("case", CASES[1::2], ids=str)
def test_trainings_forward_pass_equals_the_devices(case):
    config = network(*case)
    variables, features = random_variables(config, 2), random_features(2)
    gradient, logits = training(config)(variables["params"], variables, features)
    assert_logits(config, logits, expected_logits(detector_of(config, variables), features))
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6


def test_a_clip_does_not_depend_on_its_batch():
    config = network("convolutions", 4, 8)
    apply = jax.jit(build_model(config, len(EVENTS)).apply)
    variables, features = random_variables(config, 4), random_features(4)
    together = apply(variables, features)
    np.testing.assert_array_equal(together, expected_logits(detector_of(config, variables), features))
    np.testing.assert_array_equal(apply(variables, features[2:3]), together[2:3])
    np.testing.assert_array_equal(apply(variables, features.at[:2].set(1e3))[2:], together[2:])


def floats(config, variables, features):
    """Logits of the float network, and its values that are quantized: input, convolutions, cells."""
    variables = jax.tree.map(np.float64, variables)
    params, norm = variables["params"], variables["norm"]["normalize"]
    x = (np.float64(features) - norm["mean"]) / norm["std"]
    inner = {"input": x, "convolutions": [], "cells": []}
    for index in range(len(config.convolutions)):
        x = x[..., None] if x.ndim == 3 else x
        own, name = params["front"], f"BatchNorm_{index}"
        padded, stride = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0))), 2 if index < config.time_strides else 1
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::stride, ::2]
        x = np.einsum("btmcij,ijco->btmo", windows, own[f"w{index}"])
        statistics, affine = variables["batch_stats"]["front"][name], own[name]
        x = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
        x = np.maximum(x * affine["scale"] + affine["bias"], 0)
        inner["convolutions"].append(x)
    x = x.reshape(*x.shape[:2], -1)
    for layer in params["lstm"]:
        h = c = np.zeros((len(x), len(layer["b"]) // 4))
        hs, cs = [], []
        for x_t in x.swapaxes(0, 1):
            z_f, z_i, z_c, z_o = np.split(np.concatenate([h, x_t], 1) @ layer["w"] + layer["b"], 4, axis=1)
            c = c / (1 + np.exp(-z_f)) + np.tanh(z_c) / (1 + np.exp(-z_i))
            h = np.tanh(c) / (1 + np.exp(-z_o))
            hs.append(h)
            cs.append(c)
        x = np.stack(hs, axis=1)
        inner["cells"].append(np.abs(cs).max())
    logits = x @ params["output"]["w"] + params["output"]["b"]
    if config.pooling == "attention":
        weights = np.exp(x @ params["attention"]["w"] + params["attention"]["b"])
        return (weights / weights.sum(axis=1, keepdims=True) * logits).sum(axis=1), inner
    return logits[:, -1] if config.pooling == "last" else logits.mean(axis=1), inner


@pytest.mark.parametrize("case", [("last", 8, 8), ("convolutions", 4, 8)], ids=str)
def test_the_codes_stand_for_the_float_networks_values(case):
    config = network(*case)
    variables, features = random_variables(config, 5), random_features(5)
    detector = detector_of(config, variables)
    # The float network with the recovered weights: those at 4 bits differ much.
    logits, _ = floats(config, recovered(config, variables), features)
    error = np.abs(expected_logits(detector, features) - logits)
    assert error.max() < 0.03
    assert np.ptp(logits, axis=0).max() > 0.2


def test_a_detector_has_the_settings_of_its_run():
    config = network("convolutions", 4, 8)
    variables = random_variables(config)
    detector = detector_of(config, variables)
    assert detector.features == FEATURES
    assert (detector.network, detector.events, detector.clip_seconds) == (config, EVENTS, 3.0)
    for name in ("mean", "std"):
        np.testing.assert_array_equal(getattr(detector, name), variables["norm"]["normalize"][name])


def test_batch_norms_are_folded_as_flax_computes_them():
    # With a variance of 0, so that the epsilon added to it counts.
    config = network("convolutions")
    variables = random_variables(config)
    (own, statistics), name = (variables[part]["front"] for part in ("params", "batch_stats")), "BatchNorm_1"
    statistics[name]["var"] = jnp.zeros(5)
    conv = detector_of(config, variables).front[1]
    gain = np.asarray(own[name]["scale"]) / np.sqrt(1e-5)
    before, after = variables["exponents"]["convolutions"].tolist()
    scale = np.abs(own["w1"]).max(axis=(0, 1, 2)) / 127
    np.testing.assert_allclose(conv.multiplier, scale * gain * 2.0 ** (after + 8 - before), rtol=1e-5)
    shift = np.asarray(own[name]["bias"]) - np.asarray(statistics[name]["mean"]) * gain
    np.testing.assert_allclose(conv.bias, shift * 2.0 ** (after + 8), rtol=1e-5, atol=0.51)


def recovered(config, variables):
    """`variables` with the weights that their codes stand for."""

    def hat(w, bits):
        scale = np.abs(w).max(axis=tuple(range(w.ndim - 1))) / (2 ** (bits - 1) - 1)
        return np.rint(w / np.where(scale > 0, scale, 1)) * scale

    def leaf(path, w):
        part, name = path[0].key, path[-1].key
        if not name.startswith("w"):
            return w
        if part != "lstm":
            return hat(np.float64(w), config.quant.weights if part == "front" else config.quant.output)
        hidden = w.shape[1] // 4
        halves = (hat(np.float64(half), config.quant.weights) for half in (w[:hidden], w[hidden:]))
        return np.concatenate([*halves])

    return {**variables, "params": jax.tree.map_with_path(leaf, variables["params"])}


def best_exponent(x, low, high):
    """The exponent of least squared error, by trying all; asserts that it is clearly the best."""
    errors = {
        exponent: np.square(np.clip(np.rint(x * 2.0**exponent), low, high) * 2.0**-exponent - x).mean()
        for exponent in range(-8, 16)
    }
    first, second = sorted(errors, key=errors.get)[:2]
    assert errors[second] > 1.01 * errors[first]
    return first


def louder(variables, by):
    """`variables` with larger normalized features, so that other exponents are the best."""
    norm = variables["norm"]["normalize"]
    return {**variables, "norm": {"normalize": {**norm, "std": norm["std"] / by}}}


@pytest.mark.parametrize(
    ("case", "by"),
    [(("convolutions", 8, 8), 1), (("convolutions", 8, 3), 30), (("mean", 4, 5), 0.05)],
    ids=str,
)
def test_exponents_are_those_of_least_squared_error(case, by):
    config, bits = network(*case), case[2]
    variables = louder(random_variables(config, 6), by)
    batches = [random_features(6), random_features(7)]
    exponents = calibrate(config, variables, iter(batches))
    assert jax.tree.map(jnp.shape, exponents) == jax.tree.map(jnp.shape, variables["exponents"])
    assert {leaf.dtype for leaf in jax.tree.leaves(exponents)} == {jnp.dtype(jnp.int32)}
    _, inner = floats(config, variables, np.concatenate(batches))
    assert int(exponents["input"]) == best_exponent(inner["input"], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    expected = [best_exponent(x, 0, 2**bits - 1) for x in inner["convolutions"]]
    assert exponents.get("convolutions", np.zeros(0)).tolist() == expected
    for exponent, largest in zip(exponents["cell"].tolist(), inner["cells"], strict=True):
        assert 2 * largest * 2**exponent <= 2**15
        assert exponent == 13 or (exponent < 13 and 2 * largest * 2 ** (exponent + 1) > 2**15)


def test_a_cell_that_keeps_growing_gets_the_smallest_exponent():
    # Gates are always open: c grows by about 0.96 per step, to 384.
    config = network("last")
    variables = random_variables(config)
    w, b = jnp.zeros_like(variables["params"]["lstm"][0]["w"]), jnp.float32([20, 20, 2, 0])
    variables["params"]["lstm"] = ({"w": w, "b": jnp.repeat(b, config.hidden_size)},)
    exponents = calibrate(config, variables, [random_features(shape=(1, 400, MELS))])
    assert exponents["cell"].tolist() == [6]
    assert "convolutions" not in exponents  # Orbax can't save empty arrays


def test_repeated_batches_change_nothing():
    config = network("last", 4, 4)
    variables, features = louder(random_variables(config, 8), 3), random_features(8)
    once, often = (calibrate(config, variables, [features] * times) for times in (1, 5))
    assert_equal(once, often)


def test_an_integer_network_has_the_parameters_of_a_float_one():
    for form, config in FORMS.items():
        own, other = dict(shapes(network(form))), shapes(config)
        exponents = own.pop("exponents")
        assert own == other
        assert ("convolutions" in exponents) == bool(config.convolutions)
        if config.convolutions:
            assert exponents["convolutions"].shape == (len(config.convolutions),)
        assert exponents["cell"].shape == (config.layers,)


def test_exponents_are_neither_averaged_nor_taken_over_and_it_learns():
    tiny = LSTMConfig(convolutions=(2,), hidden_size=4, pooling="attention")
    config = dataclasses.replace(tiny, quant=QuantConfig.integer(4))
    model, optimizer = build_model(config, 3), make_optimizer(ClipRecipe(schedule="constant"), 0.02, 100)
    norm = np.full(MELS, -4, np.float32), np.full(MELS, 2, np.float32)
    new = jax.eval_shape(lambda: init_state(model, optimizer, SHAPE[1:], norm, 0, average=True))
    assert set(new.average) == {"params", "batch_stats"}
    assert set(new.model) == {"params", "batch_stats", "norm", "exponents"}

    own, other = random_variables(config), random_variables(config, 1)
    own["exponents"] = {"input": jnp.int32(5), "convolutions": jnp.int32([4]), "cell": jnp.int32([11])}
    params = own.pop("params")
    fields = {"params": params, "variables": own, "opt_state": optimizer.init(other["params"])}
    state = TrainState(step=jnp.int32(0), average=new.average, **fields)
    in_float = {key: value for key, value in other.items() if key != "exponents"}
    for earlier in (other, in_float):
        started = started_from(state, earlier)
        assert_equal(started.model, {**other, **constant(own)})
        assert_equal(started.average, moved(other))
    # A layer that only guides training is taken over if its shape fits, and keeps its own values otherwise.
    for guide in ("embedding", "classes"):
        guided = dataclasses.replace(state, params=params | {guide: {"w": jnp.zeros((4, 2))}})
        for theirs, expected in ((jnp.ones((4, 2)), 1), (jnp.ones((4, 3)), 0)):
            before = {**other, "params": {**other["params"], guide: {"w": theirs}}}
            np.testing.assert_array_equal(started_from(guided, before).params[guide]["w"], expected)
        assert not started_from(guided, other).params[guide]["w"].any()

    def loss(y, batch):
        return jnp.square(y - batch["y"]).mean()

    train_step = make_train_step(model, optimizer, loss, ema_decay=0.9)
    batch, losses = {"features": random_features(), "y": jnp.asarray(np.eye(4, 3), jnp.float32)}, []
    expected = jax.tree.map(np.array, (constant(own), other["batch_stats"]))
    for _ in range(20):
        started, metrics = train_step(started, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert_equal((constant(started.model), started.model["batch_stats"]), expected)
    assert set(started.average) == {"params", "batch_stats"}


def constant(variables):
    """The collections that neither training nor its start changes."""
    return {key: variables[key] for key in ("norm", "exponents")}


def moved(variables):
    return {key: variables[key] for key in ("params", "batch_stats")}
