"""DenseNet (Huang et al. 2017, the bottleneck variant) over log-mel energies."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config import InputError, TeacherConfig
from qkd_jax.models.common import normalize


class DenseNet(nn.Module):
    """Log-mel energies to logits; by default the paper's DenseNet-63 of 2.28 M weights.

    Stem 7x7/2 and 3x3/2 max-pool; dense blocks of BN-ReLU-1x1, BN-ReLU-3x3; transitions that
    halve channels, time and frequency; mean over time and frequency; one linear layer.
    """

    config: TeacherConfig
    events: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch time mel"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        config, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        batch_norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=dtype)

        def norm_relu(x: jax.Array) -> jax.Array:
            return nn.relu(batch_norm()(x))

        he, exact = nn.initializers.he_normal(), jax.lax.Precision.HIGHEST
        dense = functools.partial(nn.Dense, use_bias=False, dtype=dtype, kernel_init=he, precision=exact)
        spatial = functools.partial(nn.Conv, use_bias=False, dtype=dtype, kernel_init=he, precision=exact)

        def conv(x: jax.Array, channels: int, size: int, stride: int = 1) -> jax.Array:
            if size == 1:  # the same product, faster on a CPU
                return dense(channels)(x)
            return spatial(channels, (size, size), (stride, stride))(x)

        x = normalize(features)[..., None].astype(dtype)
        x = norm_relu(conv(x, config.stem, 7, 2))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for block, layers in enumerate(config.blocks):
            if block:
                x = conv(norm_relu(x), x.shape[-1] // 2, 1)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(layers):
                new = conv(norm_relu(x), config.bottleneck * config.growth, 1)
                new = conv(norm_relu(new), config.growth, 3)
                x = jnp.concatenate([x, new], axis=-1)
        if 0 in x.shape:
            frames, mels = features.shape[1:]
            raise InputError(
                f"teacher.blocks: {len(config.blocks)} blocks halve features of {frames} x {mels} to nothing"
            )
        pooled = norm_relu(x).astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(self.events, precision=jax.lax.Precision.HIGHEST)(pooled)
