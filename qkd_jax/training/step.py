"""One jitted update: of a clip model, and of a model of timed events with its mean teacher."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qkd_jax.config import EventRecipe, ModelConfig
from qkd_jax.distill.objectives import consistency_loss, label_loss, teacher_loss
from qkd_jax.models.build import Model
from qkd_jax.run_folder.state import TrainState, make_optimizer, ramp_factor

Batch = Mapping[str, Any]
Loss = Callable[[Any, Batch], jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    ema_decay: float = 0.0,
    method: str = "__call__",
) -> TrainStep:
    """The jitted update (state, batch) -> (state, metrics) of a clip model; the state's buffers are donated.

    `loss(outputs, batch)` is the scalar loss of the outputs of the model's `method`; `batch` holds `features`
    [batch, frames, mels] and the inputs of the loss.  Metrics: `loss`, and `grad_norm` before clipping.  If
    the state has a moving average, it decays by `ema_decay`, in update t at most by (1 + t) / (10 + t), so
    that initial values fade quickly.
    """

    def train_step(state, batch):
        def objective(params):
            logits, updated = model.apply(
                {"params": params, **state.variables},
                batch["features"],
                train=True,
                mutable=["batch_stats"],
                method=method,
            )
            return loss(logits, batch), updated

        (value, updated), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params, average = optax.apply_updates(state.params, updates), state.average
        if average is not None:
            step = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
            average = optax.incremental_update({"params": params, **updated}, average, 1 - decay)
        new = TrainState(state.step + 1, params, average, state.variables | updated, opt_state)
        return new, {"loss": value, "grad_norm": optax.tree.norm(gradient)}

    return jax.jit(train_step, donate_argnums=0)


def make_timed_step(model: Model, config: ModelConfig, recipe: EventRecipe, updates: int) -> TrainStep:
    """The jitted update (state, batch) -> (state, metrics) of timed events; the state's buffers are donated.

    `batch` is one of `timed_batches`; `updates` is their total number.  With ŷ the student's posteriors, m
    the mean teacher's, and t the teachers':

        L = label_weight · BCE(ŷ, y) + consistency_weight · ramp · MSE(ŷ, m)
            [+ teacher_weight · BCE(ŷ, t)] [+ embedding_weight · MSE(embedding)]

    then m <- EMA(student).  `config.objective.update` selects the network updated by the soft loss: the
    student, by this loss; the mean teacher, by its own step on BCE(m, t) afterwards (`mean_step`); or the
    student, by the gradient of BCE(m, t) at the mean teacher's parameters (`ema_ste`).  The last two are
    interpretations of TAKD (Xiao & Das 2024, who call the mean teacher "mean student"), whose equations
    aren't public; the first, with consistency, is their control CDTD.  The mean teacher is validated, saved
    and scored.
    Metrics: `loss`, its terms, and `grad_norm` before clipping.
    """
    objective, rate = config.objective, config.learning_rate
    assert objective is not None and rate is not None and config.ema_decay is not None
    network: Any = config.network
    optimizer = make_optimizer(recipe, rate, updates)
    mean_optimizer = make_optimizer(recipe, objective.mean_learning_rate * rate, updates)
    ema_decay = config.ema_decay

    def logits_of(variables: Any, features: jax.Array) -> Any:
        return model.apply(variables, features, method="step_logits")

    def soft_loss(params: Any, variables: Any, batch: Batch) -> jax.Array:
        logits = logits_of({**variables, "params": params}, batch["features"])
        return objective.teacher_weight * teacher_loss(logits, batch, network)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        # The generator rbg makes the many bits of dropout, and compiles, at little cost.
        key = jax.random.fold_in(jax.random.key(recipe.seed, impl="rbg"), state.step)
        consistency = objective.consistency_weight * ramp_factor(recipe, state.step, updates)
        mean = logits_of(state.model, batch["features"]) if objective.consistency_weight else None

        def loss_of(params):
            logits, updated = model.apply(
                {"params": params, **state.variables},
                batch["features"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
                method="step_logits",
            )
            terms = {"labels": objective.label_weight * label_loss(logits, batch, network)}
            if mean is not None:
                terms["consistency"] = consistency * consistency_loss(logits, mean)
            if config.teachers and objective.update == "student":
                terms["teachers"] = objective.teacher_weight * teacher_loss(logits, batch, network)
            if objective.embeddings is not None:
                distance = jnp.square(logits.embedding - batch["embedding"]).mean()
                terms["embeddings"] = objective.embedding_weight * distance
            return sum(terms.values()), (terms, updated)

        (loss, (terms, updated)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        if config.teachers and objective.update == "ema_ste":
            terms["teachers"], of_mean = jax.value_and_grad(soft_loss)(
                state.average["params"], state.model, batch
            )
            gradient = jax.tree.map(jnp.add, gradient, of_mean)
        opt_state = state.opt_state["student"] if objective.update == "mean_step" else state.opt_state
        updates_, opt_state = optimizer.update(gradient, opt_state, state.params)
        params = optax.apply_updates(state.params, updates_)
        decay = jnp.minimum(1 - 1 / (state.step.astype(jnp.float32) + 1), ema_decay)
        average = optax.incremental_update({"params": params, **updated}, state.average, 1 - decay)
        if config.teachers and objective.update == "mean_step":
            variables = {**state.variables, **average}
            terms["teachers"], of_mean = jax.value_and_grad(soft_loss)(average["params"], variables, batch)
            updates_, own = mean_optimizer.update(of_mean, state.opt_state["mean"], average["params"])
            average = {**average, "params": optax.apply_updates(average["params"], updates_)}
            opt_state = {"student": opt_state, "mean": own}
        new = TrainState(state.step + 1, params, average, state.variables | updated, opt_state)
        return new, {"loss": loss, **terms, "grad_norm": optax.tree.norm(gradient)}

    return jax.jit(train_step, donate_argnums=0)
