"""One update of a sound event detector and of its mean student, jitted."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qkd_jax.config import ModelConfig, SedTrainConfig
from qkd_jax.distill.timed_objectives import consistency_loss, label_loss, steepness, teacher_loss
from qkd_jax.models.build import Model
from qkd_jax.run_folder.state import TrainState

Batch = Mapping[str, Any]


def sed_optimizer(config: ModelConfig, train: SedTrainConfig, steps: int) -> optax.GradientTransformation:
    """Adam for `steps` updates in all, whose rate rises, after clipping the gradient's global norm."""

    def rate(step: jax.Array) -> jax.Array:
        return config.learning_rate * _risen(step, train, steps)

    return optax.chain(optax.clip_by_global_norm(train.clip_norm), optax.adam(rate))


def with_mean_steps(state: TrainState, config: ModelConfig, optimizer: optax.GradientTransformation) -> Any:
    """`state`, and where the mean student takes steps of its own (TAKD), an optimizer's state for them."""
    if config.through != "mean_step":
        return state
    own = optimizer.init(state.average["params"])
    return dataclasses.replace(state, opt_state={"student": state.opt_state, "mean": own})


def make_sed_step(
    model: Model, config: ModelConfig, train: SedTrainConfig, steps: int
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update (state, batch) -> (state, metrics), one of `steps`; the state's buffers are donated.

    `batch` is that of `sed_batches`.  With ŷ the student's detections, m the mean student's, t the teachers':

        L = labels · BCE(ŷ, y) + w(s) · MSE(ŷ, m) [+ teaching · BCE(ŷ, t)] [+ guidance · MSE(embedding)]

    then m <- EMA(student).  Who learns from the teachers is `config.through`: the student by this loss; the
    mean student by a step of its own on BCE(m, t) after that (`mean_step`); or the student by the gradient
    of BCE(m, t) at the mean student's parameters (`ema_ste`).  The last two are readings of TAKD (Xiao &
    Das 2024), whose equations aren't public; the first, with consistency, is its control CDTD.
    Validated, kept and scored is the mean student, which `mean_step` teaches directly.
    Metrics: `loss`, its terms, and `grad_norm` before clipping.
    """
    optimizer, span = sed_optimizer(config, train, steps), config.network.span
    slower = dataclasses.replace(config, learning_rate=config.mean_rate * config.learning_rate)
    mean_optimizer = sed_optimizer(slower, train, steps)

    def detect(variables: Any, features: jax.Array) -> Any:
        return model.apply(variables, features, method="step_logits")

    def taught(params: Any, variables: Any, batch: Batch) -> jax.Array:
        found = detect({**variables, "params": params}, batch["features"])
        return config.teaching * teacher_loss(found, batch, span)

    def sed_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        # Of a generator whose bits cost little, to compile too; dropout needs many.
        key = jax.random.fold_in(jax.random.key(train.seed, impl="rbg"), state.step)
        weight = config.consistency * _risen(state.step, train, steps)
        mean = detect(state.model, batch["features"]) if config.consistency else None

        def objective(params):
            found, updated = model.apply(
                {"params": params, **state.variables},
                batch["features"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
                method="step_logits",
            )
            terms = {"labels": config.labels * label_loss(found, batch, span)}
            if mean is not None:
                terms["consistency"] = weight * consistency_loss(found, mean)
            if config.teachers and config.through == "student":
                terms["teaching"] = config.teaching * teacher_loss(found, batch, span)
            if config.embeddings is not None:
                distance = jnp.square(found.embedding - batch["embedding"]).mean()
                terms["guidance"] = config.guidance * distance
            return sum(terms.values()), (terms, updated)

        (loss, (terms, updated)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        if config.teachers and config.through == "ema_ste":
            terms["teaching"], other = jax.value_and_grad(taught)(state.average["params"], state.model, batch)
            gradient = jax.tree.map(jnp.add, gradient, other)
        opt_state = state.opt_state["student"] if config.through == "mean_step" else state.opt_state
        updates, opt_state = optimizer.update(gradient, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(1 - 1 / (state.step + 1), train.ema_decay)
        average = optax.incremental_update({"params": params, **updated}, state.average, 1 - decay)
        if config.teachers and config.through == "mean_step":
            variables = {**state.variables, **average}
            terms["teaching"], other = jax.value_and_grad(taught)(average["params"], variables, batch)
            updates, own = mean_optimizer.update(other, state.opt_state["mean"], average["params"])
            average = {**average, "params": optax.apply_updates(average["params"], updates)}
            opt_state = {"student": opt_state, "mean": own}
        new = TrainState(
            step=state.step + 1,
            params=params,
            average=average,
            variables=state.variables | updated,
            opt_state=opt_state,
        )
        return new, {"loss": loss, **terms, "grad_norm": optax.tree.norm(gradient)}

    return jax.jit(sed_step, donate_argnums=0)


def _risen(step: jax.Array, train: SedTrainConfig, steps: int) -> jax.Array:
    """How far what rises has risen in `step`, counted from 0, of `steps`."""
    return steepness((step + 1) / max(train.ramp * steps, 1))
