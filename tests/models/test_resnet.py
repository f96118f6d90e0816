"""ResNet against a float64 reference in NumPy, and against torchvision's count of parameters."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from qkd_jax.config import ResNetConfig
from tests.networks import jitted, parameters, shaken

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TINY = ResNetConfig(blocks=(2, 1, 1), stem=4, bottleneck=2)
NO_BOTTLENECK = dataclasses.replace(TINY, bottleneck=1)
FEATURES = 2 * jax.random.normal(jax.random.key(0), (4, 41, 19)) - 5
# Layers are numbered as they are called: the stem's, then of each block the branch's and any shortcut's.
LAST_NORMS = {"BatchNorm_3", "BatchNorm_7", "BatchNorm_10", "BatchNorm_14"}
OUTSIDE_BRANCHES = {"Conv_0", "Dense_2", "Dense_7", "Dense_10", "Dense_11"}


def windows(x, size, stride):
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def convolve(x, kernel, stride):
    """Convolve x [batch, time, mel, in]; the kernel is [size, size, in, out], odd padding ends longer."""
    size, lengths = len(kernel), [-(-n // stride) for n in x.shape[1:3]]
    padding = [max(0, (m - 1) * stride + size - n) for m, n in zip(lengths, x.shape[1:3])]
    x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in padding), (0, 0)])
    return np.einsum("btmcij,ijco->btmo", windows(x, size, stride), kernel)


def max_pool(x):
    """3x3, stride 2, one cell of padding."""
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    return windows(x, 3, 2).max(axis=(-2, -1))


def reference(variables, features, config):
    """Logits of the whole net in evaluation, in float64."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, stats = variables["params"], variables["batch_stats"]
    convs, denses, norms = (
        map((kind + "_{}").format, itertools.count()) for kind in ("Conv", "Dense", "BatchNorm")
    )

    def conv_norm(x, size, stride=1):
        kernel = params[next(denses if size == 1 else convs)]["kernel"]
        x = convolve(x, kernel.reshape(size, size, *kernel.shape[-2:]), stride)
        name = next(norms)
        x = (x - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
        return x * params[name]["scale"] + params[name]["bias"]

    def relu(x):
        return np.maximum(x, 0)

    norm = variables["norm"]["normalize"]
    x = ((np.asarray(features, np.float64) - norm["mean"]) / norm["std"])[..., None]
    x = max_pool(relu(conv_norm(x, 7, 2)))
    for stage, layers in enumerate(config.blocks):
        for layer in range(layers):
            stride = 2 if stage > 0 and layer == 0 else 1
            branch = conv_norm(relu(conv_norm(relu(conv_norm(x, 1)), 3, stride)), 1)
            if layer == 0 and (stage > 0 or config.bottleneck > 1):
                x = conv_norm(x, 1, stride)
            x = relu(x + branch)
    output = params[next(denses)]
    return x.mean(axis=(1, 2)) @ output["kernel"] + output["bias"]


def test_resnet_50_has_the_parameters_of_torchvisions():
    # torchvision's 25,557,032 with a stem of one channel instead of three, and three events instead of 1000.
    expected = 25_557_032 - 2 * 64 * 7 * 7 - (2048 * 1000 + 1000) + (2048 * 3 + 3)
    assert parameters(ResNetConfig(), (998, 64)) == expected == 23_507_907


@pytest.mark.parametrize(
    ("shape", "config"),
    [((4, 41, 19), TINY), ((3, 40, 32), NO_BOTTLENECK), ((2, 3, 1), TINY)],
    ids=["odd", "even", "small"],
)
def test_logits_are_those_of_a_float64_reference(shape, config):
    """The small features are one cell after the stem: halving rounds up, never to nothing."""
    init, apply = jitted(config)
    features = 2 * jax.random.normal(jax.random.key(2), shape) - 5
    variables = shaken(init(jax.random.key(1), features))
    logits, _ = apply(variables, features)
    expected = reference(variables, features, config)
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_new_block_is_its_shortcut():
    init, apply = jitted(TINY)
    new = init(jax.random.key(1), FEATURES)
    params, (logits, _) = new["params"], apply(new, FEATURES)
    zero = {name for name, leaves in params.items() if "scale" in leaves and not leaves["scale"].any()}
    assert zero == LAST_NORMS

    def with_others(names):
        others = {name: {**params[name], "kernel": -params[name]["kernel"]} for name in names}
        return apply({**new, "params": params | others}, FEATURES)[0]

    in_branches = {name for name in params if "BatchNorm" not in name} - OUTSIDE_BRANCHES
    np.testing.assert_array_equal(with_others(in_branches), logits)
    for name in OUTSIDE_BRANCHES:
        assert np.abs(with_others([name]) - logits).max() > 1e-2
