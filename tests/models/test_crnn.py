"""The CRNN against a float64 reference in NumPy and published parameter counts, and its invariants."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from qkd_jax.config import CRNNConfig, QuantConfig
from qkd_jax.models.build import build_model
from qkd_jax.models.crnn import clip_logits
from qkd_jax.nn.gru import gru_scan
from tests.networks import parameters
from tests.oracles import recovered

pytestmark = pytest.mark.usefixtures("compiled_quickly")

quantized = functools.partial(recovered, near=1e-5)

FLOAT, CHANNEL4 = QuantConfig(), QuantConfig.per_channel(4)
# Weights and activations of different bits, one range per kernel.
KERNEL = QuantConfig(weights=5, activations=6, gates=8, cell=16, output=7)
TINY = CRNNConfig(channels=(5, 5), pools=((2, 2), (1, 2)), hidden_size=4, layers=1)
FEATURES = 2 * jax.random.normal(jax.random.key(0), (3, 13, 9)) - 5
EVENTS, EMBEDDING = 3, 7


@functools.cache
def model(config):
    """`step_logits` of `config` with an embedding, jitted; and variables, all different from new ones."""
    module = build_model(config, EVENTS, EMBEDDING)
    shapes = jax.eval_shape(module.init, jax.random.key(0), FEATURES)
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        name = path[-1].key
        if name in ("w", "w_h", "w_x", "kernel"):
            value = rng.normal(0, 1.5 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape)
        elif name in ("var", "std"):
            value = rng.uniform(*{"var": (0.5, 2), "std": (1, 3)}[name], leaf.shape)
        else:
            value = rng.normal(*((1, 0.2) if name == "scale" else (0, 0.3)), leaf.shape)
        return jnp.asarray(value - 5 if path[0].key == "norm" and name == "mean" else value, jnp.float32)

    apply = jax.jit(functools.partial(module.apply, method="step_logits"))
    return apply, jax.tree.map_with_path(drawn, shapes)


def tiny(trunk, quant=FLOAT, **settings):
    return dataclasses.replace(TINY, trunk=trunk, quant=quant, **settings)


SE_SIZES = {32: 4_547_988, 16: 1_150_660, 8: 298_652, 4: 84_312}
PUBLISHED = {"baseline": (CRNNConfig(), 1_112_420), "third": (CRNNConfig.se_third(), 340_676)}
PUBLISHED |= {str(size): (CRNNConfig.se(size), count) for size, count in SE_SIZES.items()}


@pytest.mark.parametrize(("config", "published"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameters_are_those_published(config, published):
    # torch's GRU has a second bias for r and z, in two layers of two directions.
    assert parameters(config, (626, 128), events=10) + 2 * 2 * 2 * config.hidden_size == published


def test_parameters_of_the_other_trunks_by_hand():
    def total(trunk):
        settings = {"channels": (8, 16), "pools": ((2, 2), (1, 2)), "hidden_size": 4, "layers": 1}
        return parameters(CRNNConfig(trunk=trunk, bidirectional=False, **settings), (626, 8))

    rest = 3 * 4 * (2 * 16 + 4) + 4 * 4 + 2 * (4 * 3 + 3)
    # Depthwise and pointwise; the first depthwise has all channels of the one image.
    assert total("separable") - rest == (9 * 8 + 8 * 8 + 4 * 8) + (9 * 8 + 2 * 8 + 8 * 16 + 2 * 16)
    residual = (9 * 8 + 9 * 8 * 8 + 8 + 6 * 8) + (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16 + 6 * 16)
    assert total("resnet") - rest == residual
    first, second = 9 * 4 + 9 * 5 * 4 + 9 * 8 + 32, 9 * 8 * 8 + 9 * 16 * 8 + 24 * 16 + 64
    assert total("densenet") - rest == first + second


@pytest.mark.parametrize(
    ("config", "frames", "mels"), [(CRNNConfig(), 626, 128), (TINY, 13, 9), (TINY, 12, 8)]
)
def test_steps_are_those_of_the_settings(config, frames, mels):
    init = functools.partial(build_model(config, EVENTS).init_with_output, method="step_logits")
    made, _ = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, frames, mels)))
    assert made.steps.shape == (2, config.steps(frames), EVENTS)
    assert made.embedding is None


def test_pools_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="pools: nothing is left of 13 x 3 after block 2"):
        jax.eval_shape(build_model(TINY, EVENTS).init, jax.random.key(0), jnp.zeros((1, 13, 3)))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def relu(z):
    return np.maximum(z, 0)


class Reference:
    """The network in evaluation; layers are numbered in the order in which they are called."""

    def __init__(self, config, variables):
        self.config, variables = config, jax.tree.map(np.float64, variables)
        self.params, self.norm = variables["params"], variables["norm"]["normalize"]
        self.statistics = variables["batch_stats"]["front"]
        self.convs, self.norms = (
            map((kind + "_{}").format, itertools.count()) for kind in ("_Conv", "BatchNorm")
        )

    def conv(self, x):
        """Any size and groups, x padded by zeros to keep its."""
        layer, quant = self.params["front"][next(self.convs)], self.config.quant
        w = quantized(layer["w"], quant.weights, (0, 1, 2) if quant.ranges == "channel" else (0, 1, 2, 3))
        size, half = len(w), len(w) // 2
        x = quantized(x, quant.activations, (2, 3))
        x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
        if w.shape[2] == x.shape[-1]:
            return np.einsum("btmcij,ijco->btmo", windows, w) + layer.get("b", 0)
        return np.einsum("btmcij,ijc->btmc", windows, w[:, :, 0]) + layer.get("b", 0)  # depthwise

    def conv_norm(self, x):
        x, name = self.conv(x), next(self.norms)
        x = (x - self.statistics[name]["mean"]) / np.sqrt(self.statistics[name]["var"] + 1e-3)
        return x * self.params["front"][name]["scale"] + self.params["front"][name]["bias"]

    def gated(self, x, channels):
        x = self.conv_norm(x)
        return self.conv(x) * sigmoid(x)

    def se(self, x, channels):
        x = self.conv_norm(x)
        x = x * sigmoid(self.conv(x))
        if self.last:
            return x
        # Of each channel its mean over the clip; of each band that over channels, frame by frame.
        x = x * self.excitation(x.mean(axis=(1, 2))[:, None, None])
        weights = self.excitation(x.mean(axis=3)[:, :, None])
        return x * weights[:, :, 0, :, None]

    def excitation(self, x):
        hidden = relu(self.conv(x))
        assert hidden.shape[-1] == max(x.shape[-1] // 4, 4)
        return sigmoid(self.conv(hidden))

    def separable(self, x, channels):
        return relu(self.conv_norm(relu(self.conv_norm(x))))

    def resnet(self, x, channels):
        branch = self.conv_norm(relu(self.conv_norm(x)))
        return relu(branch + (x if x.shape[-1] == channels else self.conv_norm(x)))

    def densenet(self, x, channels):
        for _ in range(2):
            x = np.concatenate([x, relu(self.conv_norm(x))], axis=-1)
        return relu(self.conv_norm(x))

    def pooled(self, x, pool):
        (batch, frames, bands, channels), (join, merge) = x.shape, pool
        x = x[:, : frames // join * join, : bands // merge * merge]
        return x.reshape(batch, frames // join, join, bands // merge, merge, channels).mean(axis=(2, 4))

    def front(self, features):
        x = ((np.float64(features) - self.norm["mean"]) / self.norm["std"])[..., None]
        for index, (channels, pool) in enumerate(zip(self.config.channels, self.config.pools), 1):
            self.last = index == len(self.config.channels)
            x = self.pooled(getattr(self, self.config.trunk)(x, channels), pool)
            assert x.shape[-1] == channels
        return x.reshape(*x.shape[:2], -1)

    def gru(self, x):
        """As `gru_scan` has it, whose own oracle is elsewhere."""
        for layer in self.params["gru"]:
            assert len(layer) == 1 + self.config.bidirectional
            ways = zip(layer, (False, True))
            x = np.concatenate([scan(way, x, self.config.quant, back) for way, back in ways], axis=-1)
        return x

    def linear(self, x, name):
        layer, bits = self.params[name], self.config.quant.output
        return quantized(x, bits, -1) @ quantized(layer["w"], bits, (0, 1)) + layer["b"]

    def embedding(self, x):
        dense, norm = (self.params["embedding"][name] for name in ("Dense_0", "LayerNorm_0"))
        y = x @ dense["kernel"] + dense["bias"]
        y = (y - y.mean(axis=-1, keepdims=True)) / np.sqrt(y.var(axis=-1, keepdims=True) + 1e-6)
        return y * norm["scale"] + norm["bias"]

    def step_logits(self, features):
        x = self.front(features)
        states = self.gru(x)
        steps, attention = (self.linear(states, name) for name in ("output", "attention"))
        weights = np.exp(attention) / np.exp(attention).sum(axis=-1, keepdims=True)
        probability = (sigmoid(steps) * weights).sum(axis=1) / weights.sum(axis=1)
        return np.log(probability / (1 - probability)), steps, self.embedding(x)


jitted_scan = jax.jit(gru_scan, static_argnames=("quant", "reverse"))


def scan(params, x, quant, reverse):
    params, x = jax.tree.map(np.float32, (params, x))
    return np.float64(jitted_scan(params, x, quant=quant, reverse=reverse)[0])


FORWARD, SE4 = tiny("gated", layers=2, bidirectional=False), tiny("se", CHANNEL4)
CASES = {trunk: tiny(trunk) for trunk in ("gated", "se", "separable", "resnet", "densenet")}
CASES |= {"forward": FORWARD, "gated, by kernel": tiny("gated", KERNEL)}
CASES |= {"se, 4 bits per channel": SE4, "separable, 4 bits per channel": tiny("separable", CHANNEL4)}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_a_float64_reference(case):
    config = CASES[case]
    apply, variables = model(config)
    reference = Reference(config, variables).step_logits(FEATURES)
    for got, expected in zip(apply(variables, FEATURES)[:3], reference, strict=True):
        assert expected.std() > 0.05
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def logits_of(steps, attention):
    """The logit of the weighted mean of probabilities, in float64."""
    weights = np.exp(attention - attention.max(axis=-1, keepdims=True))
    weights = np.maximum(weights / weights.sum(axis=-1, keepdims=True), 1e-7)
    return np.log((weights * sigmoid(steps)).sum(axis=-2)) - np.log((weights * sigmoid(-steps)).sum(axis=-2))


@pytest.mark.parametrize("scale", [1, 30, 200])
def test_a_clips_logit_is_that_of_the_weighted_mean_of_probabilities(scale):
    steps, attention = np.random.default_rng(scale).normal(size=(2, 4, 20, 5)) * scale
    expected = logits_of(steps, attention)
    got = clip_logits(jnp.float32(steps), jnp.float32(attention))
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("logit", [-1000.0, -88.0, 0.0, 88.0, 1000.0])
def test_very_large_logits_have_a_gradient(logit):
    steps, attention = jnp.full((6, 3), logit), jnp.linspace(-300, 300, 18).reshape(6, 3)
    got, gradient = jax.value_and_grad(lambda z: clip_logits(z, attention).sum())(steps)
    np.testing.assert_allclose(got, 3 * logit, rtol=1e-6, atol=1e-5)
    # All steps are equal, and the clip changes as they do.
    np.testing.assert_allclose(gradient.sum(axis=0), 1, rtol=1e-5)


def test_a_call_returns_logits_of_clips_and_the_embedding_changes_nothing_else():
    apply, variables = model(TINY)
    logits = apply(variables, FEATURES)
    module = build_model(TINY, EVENTS)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, FEATURES), logits.clip, rtol=0, atol=1e-6)
    own, guided = (
        jax.eval_shape(build_model(TINY, EVENTS, size).init, jax.random.key(0), FEATURES)["params"]
        for size in (0, EMBEDDING)
    )
    assert guided.pop("embedding").keys() == {"Dense_0", "LayerNorm_0"}
    assert guided == own


@pytest.mark.parametrize("config", [TINY, SE4], ids=["gated", "se, 4 bits"])
def test_batch_mates_do_not_matter(config):
    apply, variables = model(config)
    together = apply(variables, FEATURES)
    for mate in (np.nan, 1e3):
        for got, expected in zip(apply(variables, FEATURES.at[0].set(mate))[:3], together[:3], strict=True):
            np.testing.assert_array_equal(got[1:], expected[1:])
            assert not np.array_equal(got[0], expected[0])


def test_one_direction_looks_no_further_ahead_than_the_convolutions():
    apply, variables = model(FORWARD)
    before = apply(variables, FEATURES).steps
    # Step s joins frames 2 s and 2 s + 1; the second convolution reads one step more, the first one frame.
    for first in range(13):
        after = apply(variables, FEATURES.at[:, first:].add(1)).steps
        untouched = [step for step in range(6) if 2 * step + 1 + 2 + 1 < first]
        np.testing.assert_array_equal(after[:, untouched], before[:, untouched])
        assert (np.abs(after - before).max(axis=(0, 2)) > 1e-6).sum() == 6 - len(untouched)


def key(seed):
    """A random key whose generator compiles sooner."""
    return jax.random.key(seed, impl="rbg")


@functools.cache
def training(config):
    """The jitted gradient of a loss of all outputs, and the new statistics."""
    module = build_model(config, EVENTS, EMBEDDING)

    @jax.jit
    def run(variables, features, key):
        def loss(params):
            state, settings = {**variables, "params": params}, {"train": True, "mutable": ["batch_stats"]}
            rngs = {"dropout": key}
            logits, updated = module.apply(state, features, **settings, rngs=rngs, method="step_logits")
            return sum((z**2).sum() + (z**3).sum() for z in logits[:3]), (logits, updated["batch_stats"])

        return jax.grad(loss, has_aux=True)(variables["params"])

    return run


def test_the_gradient_at_4_bits_is_finite_and_nowhere_zero():
    _, variables = model(SE4)
    gradient, (_, statistics) = training(SE4)(variables, FEATURES, key(0))
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        # Batch-norm removes the mean, and with it the bias of the convolution before it.
        name, size = jax.tree_util.keystr(path), np.abs(leaf).max()
        if name in ("['front']['_Conv_0']['b']", "['front']['_Conv_6']['b']"):
            assert size < 1e-3
        else:
            assert size > 1e-3, name
    for before, after in zip(*map(jax.tree.leaves, (variables["batch_stats"], statistics)), strict=True):
        assert (before != after).all()


def test_training_drops_values_behind_blocks_and_around_the_gru():
    module = build_model(tiny("gated", dropout=0.3, hidden_size=32, layers=1), EVENTS)
    features = jnp.tile(FEATURES, (4, 2, 1))
    variables = jax.jit(module.init)(jax.random.key(0), features)

    def is_dropout(module, _):
        return type(module).__name__ == "_Dropout"

    @functools.partial(jax.jit, static_argnames="train")
    def dropped(variables, features, key, train=True):
        mutable = ["intermediates", "batch_stats"]
        settings = {"train": train, "mutable": mutable, "rngs": {"dropout": key}}
        logits, captured = module.apply(variables, features, **settings, capture_intermediates=is_dropout)
        return logits, jax.tree.leaves(captured["intermediates"])

    logits, values = dropped(variables, features, key(1))
    # By name: around the GRU, then behind the blocks, before their pools.
    shapes = [(12, 13, 10), (12, 13, 64), (12, 26, 9, 5), (12, 13, 4, 5)]
    assert [x.shape for x in values] == shapes
    # Before the GRU some are zero already, where the pool joins two that are.
    for x, share in zip(values, (1 - 0.7 * (1 - 0.3**2), 0.3, 0.3, 0.3), strict=True):
        np.testing.assert_allclose((np.asarray(x) == 0).mean(), share, atol=0.03)
    np.testing.assert_array_equal(dropped(variables, features, key(1))[0], logits)
    assert np.abs(dropped(variables, features, key(2))[0] - logits).max() > 1e-3
    # In evaluation none are, whatever the key.
    evaluated = [dropped(variables, features, key(seed), train=False) for seed in (1, 2)]
    assert all((x != 0).all() for x in evaluated[0][1])
    np.testing.assert_array_equal(evaluated[0][0], evaluated[1][0])
    without_a_key = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    with pytest.raises(InvalidRngError, match="dropout"):
        jax.eval_shape(without_a_key, variables, features)


def test_weights_are_a_softmax_over_events_of_at_least_1e_7():
    # One step is certain of the event, the other of its absence: the odds are the ratio of their weights.
    steps = jnp.array([[50.0, 50.0], [-50.0, -50.0]])
    attention = jnp.array([[np.log(3.0), 0.0], [100.0, 0.0]])
    expected = np.log([0.75 / 1.0, 0.25 / 1e-7])
    np.testing.assert_allclose(clip_logits(steps, attention), expected, rtol=1e-6)


def test_16_bits_are_close_to_float_and_4_bits_are_not():
    bits = QuantConfig(weights=16, activations=16, gates=16, cell=16, output=16)
    exact, fine, coarse = (
        model(config)[0](model(SE4)[1], FEATURES)[:3] for config in (tiny("se"), tiny("se", bits), SE4)
    )
    for a, b, c in zip(exact, fine, coarse, strict=True):
        assert 0 < np.abs(a - b).max() < 2e-3
        assert np.abs(a - c).max() > 1e-2


def test_with_both_directions_every_step_depends_on_the_whole_clip():
    apply, variables = model(TINY)
    before, after = (apply(variables, x).steps for x in (FEATURES, FEATURES.at[:, -2:].add(3)))
    assert (np.abs(before - after).max(axis=(0, 2)) > 1e-6).all()
