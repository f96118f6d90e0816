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
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average={} if average else None,
        variables=variables,
        opt_state=optimizer.init(params),
    )
    return begun_with(state, {"params": params, **variables})


def begun_with(state: TrainState, model: dict[str, Any]) -> TrainState:
    """`state` with the parameters and statistics of `model`, also as their average if it carries one.

    Not with what it normalises by.
    """
    moving = {key: model[key] for key in ("params", "batch_stats") if key in model}
    # A copy: the buffers of a state are donated, and each only once.
    average = None if state.average is None else jax.tree.map(jnp.copy, moving)
    params = moving.pop("params")
    return dataclasses.replace(state, params=params, average=average, variables=state.variables | moving)
