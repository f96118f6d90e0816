"""Convolution over log-mel energies, float or with both operands quantized."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config.fields import OFF
from qkd_jax.quant.fake_quant import fake_quant


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
) -> Float[Array, "batch step mel2 outputs"]:
    """Q(w) * Q(x): a convolution of `strides` in time and mel, of channels in equal `groups`.

    Time is not padded: step t reads the frames from t · stride on, `taps` of them, so that a stream may be
    cut between steps.  The mel axis, and with `pad_time` time too, is padded by zeros, half a kernel on
    either side, which are no codes but exact.  Each frame of x has its own range, over bands and channels;
    the kernel has one, or with `per_channel` one for each output.  The product is that of the recovered
    floats (see `fake_quant`, also for the gradient).  Reverse mode only.  `inputs` are those of a group.
    """
    w = fake_quant(w, w_bits, axis=(0, 1, 2) if per_channel else None)
    x = fake_quant(x, x_bits, axis=(-2, -1))
    padding = (w.shape[0] // 2 if pad_time else 0, w.shape[1] // 2)
    if groups == x.shape[-1] and strides == (1, 1):
        return _by_channel(padding, w, x)
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
    """`_convolved` where each output reads one channel, on CPUs as a sum of shifted products.

    XLA's kernel for CPUs takes some forty times as long for few channels, forward and in x; in w it is fast.
    """
    plain = partial(_convolved, strides=(1, 1), padding=padding, groups=x.shape[-1])
    return jax.lax.platform_dependent(w, x, cpu=partial(_shifted, padding), default=plain)


def _by_channel_forward(padding, w, x):
    return _by_channel(padding, w, x), (w, x)


def _by_channel_backward(padding, residuals, gradient):
    plain = partial(_convolved, strides=(1, 1), padding=padding, groups=residuals[1].shape[-1])

    def shifted(w, x, gradient):
        (d_w,) = jax.vjp(lambda w: plain(w, x), w)[1](gradient)
        around = (w.shape[0] - 1 - padding[0], w.shape[1] - 1 - padding[1])
        moved = _shifted(around, w[::-1, ::-1], gradient)
        return d_w, moved.reshape(*x.shape, w.shape[-1] // x.shape[-1]).sum(axis=-1)

    def convolved(w, x, gradient):
        return jax.vjp(plain, w, x)[1](gradient)

    return jax.lax.platform_dependent(*residuals, gradient, cpu=shifted, default=convolved)


_by_channel.defvjp(_by_channel_forward, _by_channel_backward)


def _shifted(padding: tuple[int, int], w: jax.Array, x: jax.Array) -> jax.Array:
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
