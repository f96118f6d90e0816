"""What changes while a model trains: a tree of arrays, nothing else."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qkd_jax.config import TrainConfig
from qkd_jax.models.build import Model
from qkd_jax.models.common import with_norm

_STILL = ("norm", "exponents")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "average", "variables", "opt_state"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` counts updates; `variables` are the model's other collections (statistics, norm).

    `average` is the moving average of `params` and of the statistics in `variables`, or None without
    one.  The leaves are arrays, or whatever a transformation puts in their place.
    """

    step: Any
    params: Any
    average: Any
    variables: Any
    opt_state: Any

    @property
    def model(self) -> dict[str, Any]:
        """What the model's `apply` takes, averaged if there is an average."""
        return {"params": self.params, **self.variables, **(self.average or {})}


def make_optimizer(config: TrainConfig, learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Adam for `steps` updates in all, after clipping the gradient's global norm."""
    rate: Any = learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(rate))


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    shape: tuple[int, int],
    norm: tuple[np.ndarray, np.ndarray],
    seed: int,
    *,
    average: bool = False,
) -> TrainState:
    """A new state for features of `shape` [frames, mels], normalised by `norm`, mean and std [mels].

    With `average` it carries a moving average.
    """
    variables = dict(jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *shape))))
    params = variables.pop("params")
    variables = with_norm(variables, *(jnp.asarray(array, jnp.float32) for array in norm))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average=_moving({"params": params, **variables}) if average else None,
        variables=variables,
        opt_state=optimizer.init(params),
    )


def begun_with(state: TrainState, model: dict[str, Any]) -> TrainState:
    """`state` with the parameters and statistics of `model`, also as their average if it carries one.

    What features are normalised by stays: it is that of the data; and so does a layer `embedding`, which is
    that of a guide, where `model` has none of its size.
    """
    shapes = partial(jax.tree.map, jnp.shape)
    theirs = model["params"]
    stays = shapes(state.params.get("embedding")) != shapes(theirs.get("embedding"))
    params = {key: own if stays and key == "embedding" else theirs[key] for key, own in state.params.items()}
    model = {**model, "params": params}
    average = None if state.average is None else _moving(model)
    statistics = {key: value for key, value in model.items() if key not in ("params", *_STILL)}
    return dataclasses.replace(state, params=params, average=average, variables=state.variables | statistics)


def _moving(model: dict[str, Any]) -> dict[str, Any]:
    """What training moves; a copy, for a state's buffers are donated, each only once."""
    return {key: jax.tree.map(jnp.copy, value) for key, value in model.items() if key not in _STILL}
