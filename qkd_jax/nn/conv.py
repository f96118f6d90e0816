"""Convolution over log-mel energies, in float or with both operands quantized."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config.fields import OFF
from qkd_jax.quant.fake_quant import Gradient, fake_quant


def conv_frames(
    w: Float[Array, "taps bands inputs outputs"],
    x: Float[Array, "batch time mel channels"],
    *,
    strides: tuple[int, int] = (1, 1),
    pad_time: bool = False,
    groups: int = 1,
    x_bits: int = OFF,
    w_bits: int = OFF,
    per_channel: bool = False,
    gradient: Gradient = "identity",
) -> Float[Array, "batch step mel2 outputs"]:
    """Convolve Q(x) with the kernel Q(w), with `strides` in time and mel; `inputs` is per group.

    Time is not padded: step t reads `taps` frames from t · stride on, so a stream can be cut between steps.
    The mel axis is padded by half a kernel on either side, and so is time with `pad_time`; the padding is
    zeros in float, not codes.  x has one range per frame, over bands and channels; the kernel has one
    range, or with `per_channel` one per output.  The product and its gradient are those of the recovered
    floats (see `fake_quant`).  Reverse mode only.

    >>> conv_frames(jnp.ones((3, 3, 1, 8)), jnp.ones((2, 10, 6, 1)), strides=(2, 2)).shape
    (2, 4, 3, 8)
    """
    w = fake_quant(w, w_bits, axis=(0, 1, 2) if per_channel else None, gradient=gradient)
    x = fake_quant(x, x_bits, axis=(-2, -1), gradient=gradient)
    padding = (w.shape[0] // 2 if pad_time else 0, w.shape[1] // 2)
    if groups == x.shape[-1] and strides == (1, 1):
        return _by_channel(padding, w, x)
    if groups == 1 and strides != (1, 1):
        return _strided(strides, padding, w, x)
    return _convolved(w, x, strides, padding, groups)


def _convolved(
    w: jax.Array, x: jax.Array, strides: tuple[int, int], padding: tuple[int, int], groups: int
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        w,
        strides,
        padding=[(half, half) for half in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=jax.lax.Precision.HIGHEST,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_channel(padding: tuple[int, int], w: jax.Array, x: jax.Array) -> jax.Array:
    """`_convolved` for outputs that read one channel each; on CPUs, a sum of shifted products.

    For few channels, XLA's convolution takes some 40 times as long on CPUs, forward and for the gradient in
    x; for the gradient in w it is fast.
    """
    plain = partial(_convolved, strides=(1, 1), padding=padding, groups=x.shape[-1])
    return jax.lax.platform_dependent(w, x, cpu=partial(_shifted, padding), default=plain)


def _by_channel_forward(padding, w, x):
    return _by_channel(padding, w, x), (w, x)


def _by_channel_backward(padding, residuals, gradient):
    plain = partial(_convolved, strides=(1, 1), padding=padding, groups=residuals[1].shape[-1])

    def shifted(w, x, gradient):
        # The gradient in x is a convolution of dy with the flipped kernel, padded to the size of x.
        around = (w.shape[0] - 1 - padding[0], w.shape[1] - 1 - padding[1])
        moved = _shifted(around, w[::-1, ::-1], gradient)
        return moved.reshape(*x.shape, w.shape[-1] // x.shape[-1]).sum(axis=-1)

    return _backward(plain, shifted, residuals, gradient)


def _backward(plain, in_x, residuals, gradient):
    """The gradients of `plain` in w and x; on CPUs, `in_x` computes the latter."""

    def on_cpu(w, x, gradient):
        (d_w,) = jax.vjp(lambda w: plain(w, x), w)[1](gradient)
        return d_w, in_x(w, x, gradient)

    def elsewhere(w, x, gradient):
        return jax.vjp(plain, w, x)[1](gradient)

    return jax.lax.platform_dependent(*residuals, gradient, cpu=on_cpu, default=elsewhere)


_by_channel.defvjp(_by_channel_forward, _by_channel_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _strided(strides: tuple[int, int], padding: tuple[int, int], w: jax.Array, x: jax.Array) -> jax.Array:
    """`_convolved`; on CPUs with another gradient in x.

    XLA convolves dy with zeros between its steps, which takes more than twice as long.
    """
    return _convolved(w, x, strides, padding, 1)


def _strided_forward(strides, padding, w, x):
    return _strided(strides, padding, w, x), (w, x)


def _strided_backward(strides, padding, residuals, gradient):
    def by_phase(w, x, gradient):
        return _gradient_by_phase(strides, padding, w, x.shape, gradient)

    plain = partial(_convolved, strides=strides, padding=padding, groups=1)
    return _backward(plain, by_phase, residuals, gradient)


_strided.defvjp(_strided_forward, _strided_backward)


def _gradient_by_phase(
    strides: tuple[int, int], padding: tuple[int, int], w: jax.Array, shape: tuple[int, ...], dy: jax.Array
) -> jax.Array:
    """The gradient in x of `_convolved`: for frames t = stride · a + phase, a convolution of dy per phase.

    With y[a] = Σ w[i] x[stride · a + i], it is dx[stride · a + phase] = Σ w[phase + stride · k] dy[a - k].
    """
    (taps, bands, inputs, outputs), (s, z) = w.shape, strides
    k, m = -(-taps // s), -(-bands // z)
    w = jnp.pad(w, ((0, k * s - taps), (0, m * z - bands), (0, 0), (0, 0)))
    w = w.reshape(k, s, m, z, inputs, outputs)[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    phases = _convolved(w.reshape(k, m, outputs, -1), dy, (1, 1), (k - 1, m - 1), 1)
    batch, steps, rest, _ = phases.shape
    dx = phases.reshape(batch, steps, rest, s, z, inputs).transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(batch, steps * s, rest * z, inputs)
    (_, frames, mels, _), (top, left) = shape, padding
    lacking = max(frames + top - steps * s, 0), max(mels + left - rest * z, 0)
    dx = jnp.pad(dx, ((0, 0), (0, lacking[0]), (0, lacking[1]), (0, 0)))
    return dx[:, top : top + frames, left : left + mels]


def _shifted(padding: tuple[int, int], w: jax.Array, x: jax.Array) -> jax.Array:
    """The convolution as a sum over taps and bands of x, shifted, times one weight per output."""
    (taps, bands, _, outputs), (batch, frames, mels, channels) = w.shape, x.shape
    steps, rest = frames + 2 * padding[0] - taps + 1, mels + 2 * padding[1] - bands + 1
    padded = jnp.pad(x, ((0, 0), *((half, half) for half in padding), (0, 0)))
    if channels > 1:
        padded = padded.repeat(outputs // channels, axis=-1)
    shape, total = (batch, steps, rest, outputs), jnp.zeros((), x.dtype)
    for tap in range(taps):
        for band in range(bands):
            part = padded[:, tap : tap + steps, band : band + rest]
            total += jnp.broadcast_to(part, shape) * jnp.broadcast_to(w[tap, band], shape)
    return total
