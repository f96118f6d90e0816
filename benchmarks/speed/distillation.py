"""What distillation adds to a student's train step: cached logits of the teacher, or a live teacher."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from benchmarks.speed.turns import Call, Row, agree, in_turns
from qkd_jax.config import LSTMConfig, QuantConfig, RunConfig, TeacherConfig
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.state import TrainState, init_state, make_optimizer
from qkd_jax.training.step import make_loss, make_train_step

QUESTION = "What distillation adds to a train step"
ABOUT = """The paper's student, 256 units at 8 bits, by Adam: batch 64, 998 x 64 features. Gradients of the
first step are compared: without distillation and with a teacher who knows no event; by cached logits and by
the DenseNet-63 that they are of, which computes them anew in every step."""
PACKAGES = ()
CONFIG = RunConfig()
SHAPE = (64, CONFIG.frames, CONFIG.features.n_mels)
STUDENT = LSTMConfig(quant=QuantConfig.paper(8))
TEACHER = CONFIG.teacher
EVENTS = 3
CLOSE = 1e-3
"""One rounding at a tie, should two programs differ in a last bit."""


def noise(shape: tuple[int, int, int]) -> dict[str, jax.Array]:
    """Features of `shape` [batch, frames, mels], and labels of chance [batch, events]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (shape[0], EVENTS))
    return {
        "features": jnp.asarray(rng.normal(0, 1, shape), jnp.float32),
        "labels": jnp.asarray(labels, jnp.float32),
    }


def training(step: Any, state: TrainState, batch: dict[str, jax.Array], teacher: Any = None) -> Call:
    """From a copy of `state` a `step` on `batch` a call; what a call returns is gone after the next.

    A `teacher`, features to logits, teaches live: as a run has it, by a program of its own.
    """
    state = jax.tree.map(jnp.copy, state)

    def call() -> TrainState:
        nonlocal state
        taught = {"teacher_logits": teacher(batch["features"])} if teacher else {}
        state, _ = step(state, batch | taught)
        return jax.block_until_ready(state)

    return call


def gradient(first: TrainState) -> np.ndarray:
    """A tenth of the gradient of the first step, flat: Adam's first moment after it."""
    return np.array(ravel_pytree(optax.tree.get(first.opt_state, "mu"))[0])


def rows(
    rounds: int,
    shape: tuple[int, int, int] = SHAPE,
    student: LSTMConfig = STUDENT,
    teacher: TeacherConfig = TEACHER,
) -> Iterator[Row]:
    """Cached logits beside a step without distillation, and beside a live teacher."""
    batch, mels = noise(shape), shape[2]
    model, optimizer = build_model(student, EVENTS), make_optimizer(CONFIG.train, student.learning_rate, 1000)
    state = init_state(model, optimizer, shape[1:], (np.zeros(mels), np.ones(mels)), seed=0)
    weight, every = jnp.linspace(1.0, 3.0, EVENTS), np.ones(EVENTS, bool)
    known, unknown, alone = (
        make_train_step(model, optimizer, make_loss(CONFIG.distill, weight, known))
        for known in (every, ~every, None)
    )
    network = build_model(teacher, EVENTS)
    variables = jax.jit(network.init)(jax.random.key(1), batch["features"][:1])
    live = partial(jax.jit(network.apply), variables)
    cached = batch | {"teacher_logits": live(batch["features"])}
    calls = {
        "cached logits": training(known, state, cached),
        "without distillation": training(alone, state, batch),
        "a live teacher": training(known, state, batch, live),
    }
    grads = {name: gradient(call()) for name, call in calls.items()}
    of_unknown = gradient(training(unknown, state, cached)())
    offs = {
        "without distillation": agree("no event known", of_unknown, grads["without distillation"], CLOSE),
        "a live teacher": agree("a live teacher", grads["cached logits"], grads["a live teacher"], CLOSE),
    }
    seconds = in_turns(calls, rounds)
    mine = seconds.pop("cached logits")
    for name, theirs in seconds.items():
        yield Row(
            what="{} x {} x {}, {} units".format(*shape, student.hidden_size),
            ours="cached logits",
            peer=name,
            seconds=mine,
            peer_seconds=theirs,
            off=offs[name],
            at_least=1 / 1.05 if name == "without distillation" else None,
            note=f"{shape[0] / np.median(mine):.2g} clips a second",
        )
