"""The training state: a tree of arrays, and the optimizer that updates it."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qkd_jax.config import ClipRecipe, EventRecipe
from qkd_jax.distill.objectives import ramp_up
from qkd_jax.models.build import Model
from qkd_jax.models.common import GUIDES, with_norm

_NOT_TRAINED = ("norm", "exponents")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "average", "variables", "opt_state"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` counts updates; `variables` are the model's other collections (statistics, norm).

    `average` is the moving average of `params` and of the statistics in `variables`, or None.  The leaves
    are arrays, or whatever a transformation puts in their place.
    """

    step: Any
    params: Any
    average: Any
    variables: Any
    opt_state: Any

    @property
    def model(self) -> dict[str, Any]:
        """The variables for the model's `apply`, averaged if there is an average."""
        return {"params": self.params, **self.variables, **(self.average or {})}


def make_optimizer(
    recipe: ClipRecipe | EventRecipe, learning_rate: float, updates: int
) -> optax.GradientTransformation:
    """Adam for `updates` updates in all, after clipping the gradient's global norm if the recipe does."""
    rate: Any = learning_rate
    if isinstance(recipe, EventRecipe):

        def rate(update: jax.Array) -> jax.Array:
            return learning_rate * ramp_factor(recipe, update, updates)

    elif recipe.schedule == "cosine":
        cosine = optax.cosine_decay_schedule(learning_rate, updates)

        def rate(update: jax.Array) -> jax.Array:
            return cosine(update.astype(jnp.float32))  # else float64 with JAX_ENABLE_X64

    clip = optax.identity() if recipe.clip_norm is None else optax.clip_by_global_norm(recipe.clip_norm)
    return optax.chain(clip, optax.adam(rate))


def ramp_factor(recipe: EventRecipe, update: jax.Array, updates: int) -> jax.Array:
    """Ramp-up factor in [0, 1] at the 0-based `update` of `updates`."""
    return ramp_up((update.astype(jnp.float32) + 1) / max(recipe.ramp * updates, 1))


COMPILED_QUICKLY = {"xla_backend_optimization_level": 0}
"""For initialization: it runs once, and takes less than a second also if it isn't optimized."""


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    shape: tuple[int, int],
    norm: tuple[np.ndarray, np.ndarray] | None,
    seed: int,
    *,
    average: bool = False,
) -> TrainState:
    """A new state for features of `shape` [frames, mels], normalized by `norm`, mean and std [mels].

    Without `norm`, for models that don't normalize.

    With `average` it carries a moving average.
    """
    key, features = jax.random.key(seed), jnp.zeros((1, *shape), jnp.float32)
    in_eval_shape = isinstance(features, jax.core.Tracer)  # where options of the compiler are refused
    init = jax.jit(model.init, compiler_options=None if in_eval_shape else COMPILED_QUICKLY)
    variables = dict(init(key, features))
    params = variables.pop("params")
    if norm is not None:
        variables = with_norm(variables, *(jnp.asarray(array, jnp.float32) for array in norm))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average=_averaged({"params": params, **variables}) if average else None,
        variables=variables,
        opt_state=optimizer.init(params),
    )


def started_from(state: TrainState, model: dict[str, Any]) -> TrainState:
    """`state` with the parameters and statistics of `model`, also as its average if it has one.

    The normalization of features stays, since it belongs to the data; so does a layer that
    only guides training if `model` has none of its shape.
    """
    shapes = partial(jax.tree.map, jnp.shape)
    theirs = model["params"]
    stay = [key for key in GUIDES if shapes(state.params.get(key)) != shapes(theirs.get(key))]
    params = {key: own if key in stay else theirs[key] for key, own in state.params.items()}
    model = {**model, "params": params}
    average = None if state.average is None else _averaged(model)
    statistics = {key: value for key, value in model.items() if key not in ("params", *_NOT_TRAINED)}
    return dataclasses.replace(state, params=params, average=average, variables=state.variables | statistics)


def _averaged(model: dict[str, Any]) -> dict[str, Any]:
    """A copy of the trained variables; a copy, because a state's buffers are donated once each."""
    return {key: jax.tree.map(jnp.copy, value) for key, value in model.items() if key not in _NOT_TRAINED}
