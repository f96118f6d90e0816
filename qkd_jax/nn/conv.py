"""Convolution over log-mel energies, float or with both operands quantized."""

import jax
from jaxtyping import Array, Float

from qkd_jax.config import OFF
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
    floats (see `fake_quant`, also for the gradient).  `inputs` are the channels of a group.
    """
    w = fake_quant(w, w_bits, axis=(0, 1, 2) if per_channel else None)
    x = fake_quant(x, x_bits, axis=(-2, -1))
    half_time, half = w.shape[0] // 2 if pad_time else 0, w.shape[1] // 2
    return jax.lax.conv_general_dilated(
        x,
        w,
        strides,
        padding=((half_time, half_time), (half, half)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=jax.lax.Precision.HIGHEST,
    )
