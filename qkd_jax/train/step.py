"""One update, jitted."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from qkd_jax.models.build import Model
from qkd_jax.train.state import TrainState

Loss = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]


def make_train_step(
    model: Model, optimizer: optax.GradientTransformation, loss: Loss
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update (state, batch) -> (state, metrics); the state's buffers are donated.

    `loss(logits, batch)` is a scalar; `batch` holds `features` [batch, frames, mels] and what
    the loss reads.  Metrics: `loss`, and `grad_norm` before clipping.
    """

    def train_step(state, batch):
        def objective(params):
            logits, updated = model.apply(
                {"params": params, **state.variables}, batch["features"], train=True, mutable=["batch_stats"]
            )
            return loss(logits, batch), updated

        (value, updated), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            variables=state.variables | updated,
            opt_state=opt_state,
        )
        return new, {"loss": value, "grad_norm": optax.tree.norm(gradient)}

    return jax.jit(train_step, donate_argnums=0)
