"""The convolution over frames against explicit sums, and its invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.nn.conv import conv_frames
from tests.oracles import recovered

oracle = functools.partial(recovered, near=1e-4)
# Compiled whole, which is faster here than operation by operation.
fast_conv = jax.jit(
    conv_frames, static_argnames=("strides", "pad_time", "groups", "x_bits", "w_bits", "per_channel")
)
ON_CODES = {"x_bits": 4, "w_bits": 4, "per_channel": True}
both_strides = pytest.mark.parametrize("strides", [(1, 2), (2, 2)])
float_and_codes = pytest.mark.parametrize("quant", [{}, ON_CODES], ids=["float", "4 bits"])


def frames():
    """Two clips of frames, bands and channels, each of another range."""
    x = np.random.default_rng(2).normal(size=(2, 12, 5, 3)) + 0.3
    return np.float32(x * np.geomspace(1, 20, 12)[:, None, None] * np.array([1.0, 0.2, 3.0]))


def kernel():
    """A kernel whose outputs have very different ranges."""
    return np.float32(np.random.default_rng(1).normal(size=(3, 3, 3, 4)) * [1.0, 20.0, 0.05, 5.0])


def recovered_by(quant, w, x):
    """The kernel and the frames that their codes at 4 bits stand for."""
    return (oracle(w, 4, (0, 1, 2)), oracle(x, 4, (2, 3))) if quant else (w, x)


def sums(w, x, dy, strides=(1, 1)):
    """Frame by frame and band by band: y, and the gradients dw and dx of the sum of y · dy."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    y, dw, dx = np.zeros(dy.shape), np.zeros(w.shape), np.zeros(x.shape)
    for t, m in np.ndindex(dy.shape[1:3]):
        window = (slice(None), *(slice(at * stride, at * stride + 3) for at, stride in zip((t, m), strides)))
        y[:, t, m] = np.einsum("bijc,ijco->bo", x[window], w)
        dw += np.einsum("bijc,bo->ijco", x[window], dy[:, t, m])
        dx[window] += np.einsum("ijco,bo->bijc", w, dy[:, t, m])
    return y, dw, dx[:, :, 1:-1]


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


WIDTHS = [(32, 32, False), (4, 32, False), (32, 4, False), (32, 4, True), (8, 8, False), (4, 4, True)]


@pytest.mark.parametrize(("x_bits", "w_bits", "per_channel"), WIDTHS)
@both_strides
def test_convolution_and_gradient_are_those_of_the_recovered_floats(strides, x_bits, w_bits, per_channel):
    w, x = kernel(), frames()
    steps = {1: 10, 2: 5}[strides[0]]
    dy = np.random.default_rng(3).normal(size=(2, steps, 3, 4))

    @jax.jit
    def both(w, x, dy):
        settings = {"strides": strides, "x_bits": x_bits, "w_bits": w_bits, "per_channel": per_channel}
        y, pullback = jax.vjp(lambda w, x: conv_frames(w, x, **settings), w, x)
        return y, *pullback(dy)

    got = both(*(jnp.asarray(array, jnp.float32) for array in (w, x, dy)))
    w_hat = oracle(w, w_bits, (0, 1, 2) if per_channel else (0, 1, 2, 3))
    expected = sums(w_hat, oracle(x, x_bits, (2, 3)), dy, strides)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)


@float_and_codes
def test_time_is_padded_by_zeros_that_are_not_quantized(quant):
    w, x = recovered_by(quant, kernel(), frames())
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    expected, _, _ = sums(w, padded, np.zeros((2, 12, 5, 4)))
    assert_close(fast_conv(jnp.asarray(kernel()), jnp.asarray(frames()), pad_time=True, **quant), expected)


@float_and_codes
def test_groups_of_channels_share_only_their_range(quant):
    w, x = kernel()[:, :, :1, :3], frames()
    got = fast_conv(jnp.asarray(w), jnp.asarray(x), groups=3, **quant)
    # The same as one kernel for all channels, with zeros outside the groups.
    w, x = recovered_by(quant, w, x)
    whole = np.zeros((3, 3, 3, 3), np.float32)
    whole[:, :, range(3), range(3)] = w[:, :, 0]
    assert_close(got, sums(whole, x, np.zeros((2, 10, 5, 3)))[0])


@float_and_codes
@both_strides
def test_a_stream_may_be_cut_anywhere(strides, quant):
    w, x, stride = jnp.asarray(kernel()), jnp.asarray(frames()), strides[0]
    whole = fast_conv(w, x, strides=strides, **quant)
    for cut in (2, 6):
        # The last step before the cut needs frames after it.
        before, after = x[:, : cut + 3 - stride], x[:, cut:]
        pieces = [fast_conv(w, piece, strides=strides, **quant) for piece in (before, after)]
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("pad_time", [False, True])
@pytest.mark.parametrize(("channels", "outputs", "size"), [(1, 4, 3), (3, 3, 3), (2, 6, 3), (1, 2, 5)])
def test_the_path_for_single_channels_equals_xlas_convolution(channels, outputs, size, pad_time):
    rng, half = np.random.default_rng(0), size // 2
    w = jnp.asarray(rng.normal(size=(size, size, 1, outputs)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 9, 6, channels)), jnp.float32)
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": channels}

    def plain(w, x):
        padding = [(half * pad_time, half * pad_time), (half, half)]
        return jax.lax.conv_general_dilated(x, w, (1, 1), padding, precision="highest", **layout)

    def fast(w, x):
        return conv_frames(w, x, pad_time=pad_time, groups=channels)

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, w, x, dy):
        y, pullback = jax.vjp(f, w, x)
        return y, *pullback(dy)

    dy = jnp.asarray(rng.normal(size=jax.eval_shape(plain, w, x).shape), jnp.float32)
    for got, expected in zip(both(fast, w, x, dy), both(plain, w, x, dy), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@settings(deadline=None, max_examples=8)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(5, 12), st.integers(5, 12)),
    st.sampled_from([1, 3, 5]),
    st.booleans(),
)
def test_the_gradient_by_phase_equals_xlas(strides, shape, size, pad_time):
    rng, half = np.random.default_rng(0), size // 2
    w = jnp.asarray(rng.normal(size=(size, size, 3, 4)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)
    padding = [(half * pad_time, half * pad_time), (half, half)]
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
    y, plain = jax.vjp(lambda w, x: jax.lax.conv_general_dilated(x, w, strides, padding, **layout), w, x)
    found, by_phase = jax.vjp(lambda w, x: conv_frames(w, x, strides=strides, pad_time=pad_time), w, x)
    np.testing.assert_allclose(found, y, atol=1e-4)
    dy = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    for got, expected in zip(by_phase(dy), plain(dy), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_only_cpus_compute_shifted_products(platform):
    def loss(w, x):
        return conv_frames(w, x, pad_time=True, groups=4).sum()

    x, w = jnp.ones((2, 5, 6, 4)), jnp.ones((3, 3, 1, 8))
    lowered = jax.export.export(jax.jit(jax.grad(loss, argnums=(0, 1))), platforms=[platform])(w, x)
    products = [line for line in lowered.mlir_module().splitlines() if "stablehlo.convolution" in line]
    assert len(products) == (1 if platform == "cpu" else 2)  # in w; and elsewhere in x
    assert all("HIGHEST" in line for line in products)
