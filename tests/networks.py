"""Flax models made ready for tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qkd_jax.models.build import build_model
from qkd_jax.run_folder.state import COMPILED_QUICKLY


@functools.cache
def jitted(config):
    """init(key, features), and apply(variables, features, train) -> logits and the new statistics."""
    model = build_model(config, events=3)

    @functools.partial(jax.jit, static_argnames="train")
    def apply(variables, features, train=False):
        logits, after = model.apply(variables, features, train=train, mutable=["batch_stats"])
        return logits, after["batch_stats"]

    return jax.jit(model.init, compiler_options=COMPILED_QUICKLY), apply


def shaken(variables):
    """`variables` with random norms: scales of 0 and 1, means of 0 and variances of 1 would hide a fault."""
    rng = np.random.default_rng(0)
    draws = {
        "scale": lambda shape: rng.normal(1, 0.3, shape),
        **dict.fromkeys(("bias", "mean"), lambda shape: rng.normal(0, 0.3, shape)),
        "var": lambda shape: rng.uniform(0.5, 2, shape),
        "std": lambda shape: rng.uniform(1, 3, shape),
    }

    def draw(path, leaf):
        return jnp.float32(draws[path[-1].key](leaf.shape)) if path[-1].key in draws else leaf

    return jax.tree.map_with_path(draw, variables)


def parameters(config, shape, events=3):
    """The number of parameters for features of `shape`, without computing any."""
    model = build_model(config, events)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def timed_batch(kinds, frames, events=2, **more):
    """Random targets of clips with strong labels (s), weak labels (w) or none (u), and the arrays given."""
    rng, clips = np.random.default_rng(1), len(kinds)
    targets = {
        "strong": rng.random((clips, frames, events)) < 0.25,
        "weak": rng.random((clips, events)) < 0.5,
        "has_strong": [kind == "s" for kind in kinds],
        "has_weak": [kind == "w" for kind in kinds],
        "teacher": rng.random((clips, frames, events)),
        "teacher_clip": rng.random((clips, events)),
    }
    return {key: jnp.asarray(value, jnp.float32) for key, value in (targets | more).items()}
