import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from qkd_jax.config import CRNNConfig, DenseNetConfig, LSTMConfig, QuantConfig
from qkd_jax.evaluation.cost import model_cost, multiply_adds, packed_bytes
from qkd_jax.models.build import build_model

PAPER = (998, 64)


def cost(config, quant=None):
    """The cost of a model of the paper's size, without making its parameters."""
    model = build_model(config, events=3)
    features = jax.ShapeDtypeStruct((1, *PAPER), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), features)
    return model_cost(model, variables, PAPER, quant), variables


def test_the_papers_lstm():
    row, _ = cost(LSTMConfig())
    multiply_adds = 998 * 1024 * 320 + 768
    assert row.pop("multiply_adds") == multiply_adds
    assert row == {"parameters": 329_475, "quantized_values": 0, "bytes": 1_317_900}
    row, _ = cost(LSTMConfig(layers=3))
    assert row["parameters"] == 1_380_099
    assert row["multiply_adds"] == 998 * 1024 * (320 + 512 + 512) + 768


@pytest.mark.parametrize("packed", [False, True], ids=["float", "packed"])
def test_convolutions_in_front_and_attention_behind(packed):
    quant = QuantConfig(weights=4, activations=4, gates=4, cell=16, output=8, ranges="channel")
    shape = {"convolutions": (16, 32, 64, 64), "time_strides": 3, "hidden_size": 128, "pooling": "attention"}
    network = LSTMConfig(**shape, quant=quant if packed else QuantConfig())
    row, _ = cost(network, quant if packed else None)
    # 998 x 64 to 498 x 32, 248 x 16, 123 x 8 and 121 x 4.
    kernels = [9 * 1 * 16, 9 * 16 * 32, 9 * 32 * 64, 9 * 64 * 64]
    lstm, norms, biases = (128 + 4 * 64) * 4 * 128, 2 * (16 + 32 + 64 + 64), 4 * 128 + 3 + 3
    heads = 2 * 128 * 3  # the logits, and the weights of attention
    assert row["parameters"] == sum(kernels) + lstm + norms + biases + heads == 258_294
    places = [498 * 32, 248 * 16, 123 * 8, 121 * 4]
    products = sum(place * kernel for place, kernel in zip(places, kernels))
    assert row["multiply_adds"] == products + 121 * (lstm + heads)
    ranges = (16 + 32 + 64 + 64) + 2 * 4 * 128  # of channels, and of the columns of W_h and W_x
    in_float = 4 * (norms + biases)
    expected = (sum(kernels) + lstm) // 2 + heads + in_float + 8 * ranges if packed else 4 * 258_294
    assert row["bytes"] == expected


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        # Biases and, by default, the output layer stay float32.
        *((QuantConfig(weights=bits, activations=bits), size) for bits, size in ((8, 334_860), (4, 171_020))),
        (QuantConfig(weights=32, activations=32), 1_317_900),
        (QuantConfig(output=8), 4 * (329_475 - 768) + 768),
        # Float weights have no ranges.
        (QuantConfig(output=8, ranges="channel"), 4 * (329_475 - 768) + 768),
        (QuantConfig(weights=4, ranges="split"), 171_020),
        (QuantConfig(weights=4, ranges="channel"), 171_020 + 2 * 4 * 2 * 1024),
        (QuantConfig(gates=8, cell=16, activations=8), 1_317_900),
    ],
    ids=str,
)
def test_bytes_count_only_what_is_stored_at_few_bits(quant, expected):
    row, _ = cost(LSTMConfig(quant=quant), quant)
    assert row["bytes"] == expected
    # Codes are multiplied as often as floats.
    assert row["multiply_adds"] == 998 * 1024 * 320 + 768


@pytest.mark.parametrize("pooling", ["last", "attention"])
@pytest.mark.parametrize("bits", [8, 3])
def test_integer_lstms_have_a_multiplier_and_a_bias_per_column(bits, pooling):
    shape = {"convolutions": (4, 6), "time_strides": 1, "hidden_size": 8, "pooling": pooling}
    quant = QuantConfig.integer(bits)
    row, _ = cost(LSTMConfig(**shape, quant=quant), quant)
    # 64 bands halved twice: 16 of 6 channels.
    weights = [9 * 1 * 4, 9 * 4 * 6, (8 + 16 * 6) * 32]
    heads = 2 if pooling == "attention" else 1
    packed = sum(math.ceil(size * bits / 8) for size in weights) + heads * 8 * 3
    # Convolutions have those of batch-norm, the LSTM two; the few multipliers of output layers don't count.
    assert row["bytes"] == packed + 4 * (2 * (4 + 6) + 3 * 32 + heads * 3)
    # A device computes the same products as the float network.
    assert row["multiply_adds"] == cost(LSTMConfig(**shape))[0]["multiply_adds"]


@pytest.mark.parametrize(
    ("quant", "of_step"),
    [
        (QuantConfig(), 0),
        # The paper's 0.0016 G: [h, x], gates and tanh(c), without the cell.
        (QuantConfig(weights=8, activations=8, gates=8), 320 + 4 * 256 + 256),
        (QuantConfig.paper(8), 320 + 4 * 256 + 256 + 256),
        (dataclasses.replace(QuantConfig.paper(4), gradient="chain"), 320 + 4 * 256 + 256 + 256),
        (QuantConfig.paper(16), 320 + 4 * 256 + 256 + 256),
    ],
)
def test_the_work_that_quantizing_adds_is_the_papers(quant, of_step):
    row, _ = cost(LSTMConfig(quant=quant), quant)
    assert row["quantized_values"] == 998 * of_step
    assert row["multiply_adds"] == cost(LSTMConfig())[0]["multiply_adds"]


def test_pooled_over_time_alone_densenet_63_has_the_papers_size():
    _, variables = cost(DenseNetConfig(pooling="time"))
    weights = 3 + sum(leaf.size for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1)
    assert weights == 2_280_187
    assert round(4 * weights / 2**20, 2) == 8.70


def test_densenet_63():
    row, variables = cost(DenseNetConfig())
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1)
    assert weights == 2_278_636
    assert row["parameters"] == 2_305_063 == row["bytes"] / 4
    assert 1.3e9 < row["multiply_adds"] < 1.4e9


SMALL = CRNNConfig(channels=(4, 8), pools=((2, 2), (1, 2)), hidden_size=6, layers=1)


def crnn_cost(config, embedding=0, shape=(22, 12)):
    model = build_model(config, 3, embedding)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    return model_cost(model, variables, shape, config.quant)


def test_desed_baseline():
    row = crnn_cost(CRNNConfig(), shape=(626, 128))
    # DESED's 10 events are 3 here; torch's GRU has a second bias for two gates.
    assert row["parameters"] == 1_112_420 - 2 * 7 * 257 - 2 * 2 * 2 * 128 == row["bytes"] / 4
    channels, frames, products = (1, 16, 32, 64, 128, 128, 128, 128), (626, 313, *[156] * 5), 0
    for block, (before, after) in enumerate(itertools.pairwise(channels)):
        products += frames[block] * (128 >> block) * (9 * before * after + after * after)
    products += 156 * 2 * 3 * 128 * (128 + 128 + 128 + 256) + 156 * 2 * 3 * 256
    assert row["multiply_adds"] == products


# 22 x 12 features, pooled to 11 x 6 and 11 x 3, of 8 channels: 24 inputs of the GRU.
MATRICES = 2 * [6 * 18, 24 * 18]
GRU, READ, BIASES = sum(MATRICES), 2 * 12 * 3, 2 * 4 * 6 + 2 * 3
TRUNKS = {
    # Kernels, biases and batch-norms, and multiply-adds.
    "gated": (
        [9 * 4, 4 * 4, 9 * 4 * 8, 8 * 8],
        2 * (4 + 8) + 2 * (4 + 8),
        22 * 12 * (9 * 4 + 4 * 4) + 11 * 6 * (9 * 4 * 8 + 8 * 8),
    ),
    # SE of 4 channels and tfwSE of 12 bands, through 4 each, behind the first block.
    "se": (
        [9 * 4, 4 * 4, 4 * 4, 4 * 4, 4 * 12, 12 * 4, 9 * 4 * 8, 8 * 8],
        2 * (4 + 8) + 2 * (4 + 8),
        22 * 12 * (9 * 4 + 4 * 4) + 2 * 4 * 4 + 22 * 2 * 4 * 12 + 11 * 6 * (9 * 4 * 8 + 8 * 8),
    ),
    "separable": (
        [9 * 4, 4 * 4, 9 * 4, 4 * 8],
        2 * (4 + 4) + 2 * (4 + 8),
        22 * 12 * (9 * 4 + 4 * 4) + 11 * 6 * (9 * 4 + 4 * 8),
    ),
}
RANGES = {"gated": 2 * (4 + 8), "se": 2 * (4 + 8) + 2 * 4 + 4 + 12, "separable": 2 * 4 + 4 + 8}
AT_FEW = {
    "kernel": QuantConfig(weights=4, activations=8, gates=8, output=8),
    "channel": QuantConfig(weights=3, activations=8, gates=8, ranges="channel"),
}


@pytest.mark.parametrize("ranges", AT_FEW)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_bytes_and_multiply_adds_of_crnns(trunk, ranges):
    quant, (kernels, floats, products) = AT_FEW[ranges], TRUNKS[trunk]
    row = crnn_cost(dataclasses.replace(SMALL, trunk=trunk, quant=quant))
    assert row["parameters"] == sum(kernels) + floats + GRU + READ + BIASES
    assert row["multiply_adds"] == products + 11 * (GRU + READ)
    packed = sum(math.ceil(size * quant.weights / 8) for size in kernels + MATRICES)
    # W_h and W_x of two directions have ranges of their own, for each column.
    numbers = 2 * (RANGES[trunk] + 2 * 2 * 18) if ranges == "channel" else 0
    assert row["bytes"] == packed + READ * quant.output // 8 + 4 * (floats + BIASES + numbers)


def test_a_layer_that_only_guides_training_costs_nothing():
    quant = QuantConfig.paper(4)
    for config in (SMALL, dataclasses.replace(SMALL, quant=quant)):
        assert crnn_cost(config, embedding=50) == crnn_cost(config)
    for guide in ("embedding", "classes"):
        assert packed_bytes({"gru": {}, guide: {"kernel": jnp.zeros(7)}}, quant) == 0


def test_a_densenet_is_not_packed():
    row, _ = cost(DenseNetConfig(blocks=(1,), growth=4, stem=8))
    assert row["bytes"] == 4 * row["parameters"]
    with pytest.raises(ValueError, match="params: expected those of an LSTM or CRNN to quantize, got"):
        cost(DenseNetConfig(blocks=(1,), growth=4, stem=8), QuantConfig.paper(4))


A, B = jnp.zeros((5, 3, 4)), jnp.zeros((5, 4, 7))
IMAGE, KERNEL = jnp.zeros((2, 16, 11, 6)), jnp.zeros((3, 5, 6, 8))
VECTOR, MATRIX = jnp.zeros(4), jnp.zeros((4, 4))


def convolve(image, kernel, strides=(1, 1), padding="VALID", groups=1):
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    return jax.lax.conv_general_dilated(image, kernel, strides, padding, **layout)


def product(x):
    return MATRIX @ x


def scanned(x):
    """Ten times: three products in an inner loop, and one."""

    def outer(h, _):
        inner, _ = jax.lax.scan(lambda h, _: (product(h), None), h, length=3)
        return product(inner), None

    return jax.lax.scan(outer, x, length=10)[0]


with_own_gradient = jax.custom_vjp(product)
with_own_gradient.defvjp(lambda x: (product(x), None), lambda _, dy: (MATRIX.T @ dy,))


strided = partial(convolve, strides=(2, 3), padding="SAME")
FUNCTIONS = {
    "matmul": (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (A, B), 5 * 3 * 7 * 4),
    "conv": (convolve, (IMAGE, KERNEL), 2 * 14 * 7 * 8 * 3 * 5 * 6),
    "strided": (strided, (IMAGE, KERNEL), 2 * 8 * 4 * 8 * 3 * 5 * 6),
    "grouped": (partial(convolve, groups=2), (IMAGE, KERNEL[:, :, :3]), 2 * 14 * 7 * 8 * 3 * 5 * 3),
    "scan": (scanned, (VECTOR,), 10 * (3 + 1) * 16),
    "jit": (jax.jit(lambda x: MATRIX @ jax.jit(product)(x)), (VECTOR,), 2 * 16),
    "custom_vjp": (with_own_gradient, (VECTOR,), 16),
    "remat": (jax.checkpoint(product), (VECTOR,), 16),
    "cond": (lambda x: jax.lax.cond(x[0] > 0, product, product, x), (VECTOR,), 16),
    "print": (lambda x: jax.debug.print("{}", x[0]) or product(x), (VECTOR,), 16),
    "elementwise": (jnp.tanh, (A,), 0),
    "not needed": (lambda x: (product(x), product(x))[0], (VECTOR,), 16),
}


@pytest.mark.parametrize(("function", "arguments", "expected"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_multiply_adds_by_hand(function, arguments, expected):
    assert multiply_adds(function, *arguments) == expected


def test_multiply_adds_of_a_gradient_are_those_of_both_passes():
    def loss(x, w):
        return (jnp.tanh(x @ w) ** 2).sum()

    x, w = jnp.zeros((6, 4)), jnp.zeros((4, 5))
    assert multiply_adds(jax.grad(loss, argnums=(0, 1)), x, w) == 3 * 6 * 4 * 5


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="expected loops of known length"):
        multiply_adds(lambda x: jax.lax.while_loop(lambda y: y[0] < 1, lambda y: MATRIX @ y, x), VECTOR)
