"""DenseNet (Huang et al. 2017, bottleneck variant) over log-mel energies."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config import DenseNetConfig
from qkd_jax.models.common import batch_norm, conv, pooled_logits, stem


class DenseNet(nn.Module):
    """Log-mel energies to logits; by default the paper's DenseNet-63 with 2.28 M weights.

    Stem 7x7/2 and 3x3/2 max-pool; dense blocks of BN-ReLU-1x1, BN-ReLU-3x3; transitions that halve
    channels, time and frequency; mean over time and frequency, or with `pooling="time"` over time alone; one
    linear layer.  Raises ValueError if the blocks leave nothing of the features.

    The paper pools "over all timesteps", which may mean either.  Over time alone, the output layer of
    DenseNet-63 reads 2 mel bands of 516 channels: with its biases 2,280,187 weights, the paper's 8.70 MB.
    """

    config: DenseNetConfig
    events: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch time mel"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        config = self.config

        def norm_relu(x: jax.Array) -> jax.Array:
            return nn.relu(batch_norm(x, train=train))

        x = stem(features, config.stem, config.compute_dtype, train=train)
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
            raise ValueError(
                f"blocks: {len(config.blocks)} blocks halve features of {frames} x {mels} to nothing"
            )
        x = norm_relu(x)
        if config.pooling == "time":
            x = x.reshape(*x.shape[:2], 1, -1)
        return pooled_logits(x, self.events)
