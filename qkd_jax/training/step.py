"""One update, jitted, and the loss that it makes smaller."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qkd_jax.config import DistillConfig
from qkd_jax.distill.objectives import distillation_loss, weighted_bce
from qkd_jax.models.build import Model
from qkd_jax.run_folder.state import TrainState

Loss = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]


def make_train_step(
    model: Model, optimizer: optax.GradientTransformation, loss: Loss, *, ema_decay: float = 0.0
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update (state, batch) -> (state, metrics); the state's buffers are donated.

    `loss(logits, batch)` is a scalar; `batch` holds `features` [batch, frames, mels] and what
    the loss reads.  Metrics: `loss`, and `grad_norm` before clipping.  A state that carries an
    average has it moved by `ema_decay`, less in the first steps: step t by at
    most (1 + t) / (10 + t), so that initial values are soon forgotten.
    """

    def train_step(state, batch):
        def objective(params):
            logits, updated = model.apply(
                {"params": params, **state.variables}, batch["features"], train=True, mutable=["batch_stats"]
            )
            return loss(logits, batch), updated

        (value, updated), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params, average = optax.apply_updates(state.params, updates), state.average
        if average is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update({"params": params, **updated}, average, 1 - decay)
        new = TrainState(
            step=state.step + 1,
            params=params,
            average=average,
            variables=state.variables | updated,
            opt_state=opt_state,
        )
        return new, {"loss": value, "grad_norm": optax.tree.norm(gradient)}

    return jax.jit(train_step, donate_argnums=0)


def make_loss(settings: DistillConfig, weight: jax.Array, known: np.ndarray | None) -> Loss:
    """Eq. 2 for the events that a teacher has `known`, eq. 1 for others, or for all without a teacher.

    `weight` is that of each event's positive labels, [events]; `known` is of booleans, [events].
    """
    if known is None:
        return lambda logits, batch: weighted_bce(logits, batch["labels"], weight)
    return lambda logits, batch: distillation_loss(
        logits,
        batch["labels"],
        batch["teacher_logits"],
        alpha=jnp.where(known, settings.alpha, 0.0),
        temperature=settings.temperature,
        positive_weight=weight,
        form=settings.form,
    )
