"""A head: a small classifier on the outputs of pretrained taggers, window by window."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkd_jax.config import HeadConfig
from qkd_jax.models.common import Logits


class Head(nn.Module):
    """Windows of a clip to logits: a logistic classifier or one hidden layer, beside the taggers' own logits.

    Of each window, the first `events` inputs are the logits of the taggers' own classes (zero-shot), 0 for
    events without classes; the others are projections (`qkd_jax.distill.head_inputs`).  A window's logits are
    `gain` · zero-shot plus what is fitted; those of a clip are the maximum over its windows.  Events that
    aren't `fitted` keep their zero-shot logits.  The collection `fitted` isn't trained.
    """

    config: HeadConfig
    events: int

    def __call__(
        self, inputs: Float[Array, "batch window size"], *, train: bool = False
    ) -> Float[Array, "batch event"]:
        return self.step_logits(inputs).clip

    @nn.compact
    def step_logits(self, inputs: Float[Array, "batch window size"], *, train: bool = False) -> Logits:
        zero_shot, x = inputs[..., : self.events], inputs[..., self.events :]
        if self.config.hidden_size:
            w = self.param("hidden_w", nn.initializers.lecun_normal(), (x.shape[-1], self.config.hidden_size))
            b = self.param("hidden_b", nn.initializers.zeros, (self.config.hidden_size,))
            x = x @ w
            x = jnp.tanh(x + jnp.broadcast_to(b, x.shape))
        w = self.param("w", nn.initializers.zeros, (x.shape[-1], self.events))
        b = self.param("b", nn.initializers.zeros, (self.events,))
        fitted = self.variable("fitted", "events", jnp.ones, (self.events,), jnp.bool_).value
        gain = self.variable("fitted", "gain", jnp.ones, (self.events,)).value
        self.variable("fitted", "penalty", jnp.zeros, ())
        own = jnp.broadcast_to(gain, zero_shot.shape) * zero_shot + x @ w
        own = own + jnp.broadcast_to(b, own.shape)
        steps = jnp.where(jnp.broadcast_to(fitted, own.shape), own, zero_shot)
        return Logits(steps.max(axis=-2), steps)
