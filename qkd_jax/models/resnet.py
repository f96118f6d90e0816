"""ResNet (He et al. 2016, bottleneck variant) over log-mel energies."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from qkd_jax.config import ResNetConfig
from qkd_jax.models.common import batch_norm, conv, pooled_logits, stem


class ResNet(nn.Module):
    """Log-mel energies to logits; by default a ResNet-50.

    Stem 7x7/2 and 3x3/2 max-pool; stages of residual blocks, each of which except the first halves time
    and frequency, rounded up, and doubles the width; mean over time and frequency; one linear layer.  Two
    practices are newer than the paper: the stride is in the 3x3 convolution, as in torchvision ("v1.5"), and
    the scale of the last batch-norm of each branch is initialized to zero, so that a block starts as its
    shortcut (Goyal et al. 2017).
    """

    config: ResNetConfig
    events: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch time mel"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        config = self.config

        def conv_norm(
            x: jax.Array, channels: int, size: int, stride: int = 1, initial_scale: float = 1.0
        ) -> jax.Array:
            return batch_norm(conv(x, channels, size, stride), train=train, initial_scale=initial_scale)

        def residual_block(x: jax.Array, width: int, stride: int) -> jax.Array:
            channels = config.bottleneck * width
            branch = nn.relu(conv_norm(x, width, 1))
            branch = nn.relu(conv_norm(branch, width, 3, stride))
            branch = conv_norm(branch, channels, 1, initial_scale=0.0)
            shortcut = x if x.shape == branch.shape else conv_norm(x, channels, 1, stride)
            return nn.relu(shortcut + branch)

        x = stem(features, config.stem, config.compute_dtype, train=train)
        for stage, layers in enumerate(config.blocks):
            for layer in range(layers):
                stride = 2 if stage and not layer else 1
                x = residual_block(x, config.stem * 2**stage, stride)
        return pooled_logits(x, self.events)
