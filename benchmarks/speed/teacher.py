"""A train step of the teacher, DenseNet-63, beside torch; and what distillation adds to a student's step."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from benchmarks.common import EVENTS as _EVENTS
from benchmarks.speed.lstm import Shape, torch_device, torch_is_here, torch_waited
from benchmarks.speed.measure import Call, Row, agree, arithmetic, beside, in_turns, late, waited
from qkd_jax.config import ClipRecipe, DenseNetConfig, LSTMConfig, QuantConfig
from qkd_jax.distill.objectives import weighted_bce
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.state import TrainState, init_state, make_optimizer
from qkd_jax.training.clips import make_loss
from qkd_jax.training.step import make_train_step

TEACHER, STUDENT = DenseNetConfig(), LSTMConfig(quant=QuantConfig.paper(8))
EVENTS = len(_EVENTS)
SHAPE, STUDENT_SHAPE = (16, 998, 64), (64, 998, 64)
HOWS = ("torch", "torch channels last", "torch.compile channels last")
CLOSE_LOGITS, CLOSE_GRADS = 1e-4, 1e-2
"""Another order of summation switches a few ReLUs, and with them gradients of the layers below."""
CLOSE = 1e-3
"""One rounding at a tie, if two programs differ in a last bit."""


class Batch(NamedTuple):
    """A batch: `features` [batch, frames, mels], `labels` 0 or 1 [batch, events], `weight` [events]."""

    features: jax.Array
    labels: jax.Array
    weight: jax.Array


def noise(shape: Shape) -> Batch:
    """Features of `shape`, random labels, and weights of positive labels."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(0, 1, shape), rng.integers(0, 2, (shape[0], EVENTS))
    return Batch(*(jnp.asarray(each, jnp.float32) for each in (features, labels, np.linspace(1, 3, EVENTS))))


def ours(config: DenseNetConfig, variables: Any, batch: Batch) -> Call:
    """A step to (logits, gradient, statistics), as `make_train_step` differentiates it."""
    model = build_model(config, EVENTS)

    @jax.jit
    def step(variables: Any, batch: Batch) -> Any:
        def objective(params: Any) -> Any:
            logits, updated = model.apply(
                variables | {"params": params}, batch.features, train=True, mutable=["batch_stats"]
            )
            return weighted_bce(logits, batch.labels, batch.weight), (logits, updated)

        grads, (logits, updated) = jax.grad(objective, has_aux=True)(variables["params"])
        return logits, grads, updated

    return partial(waited, step, variables, batch)


def torch_densenet(config: DenseNetConfig, params: Any, shape: Shape) -> Any:
    """`qkd_jax.models.densenet` as one writes it in torch, for features of `shape`, with our `params`."""
    import torch
    from torch import nn

    def norm_relu(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]

    def norm_relu_conv(channels: int, out: int, size: int) -> list[nn.Module]:
        return [*norm_relu(channels), nn.Conv2d(channels, out, size, padding=size // 2, bias=False)]

    class Layer(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            wide = config.bottleneck * config.growth
            self.new = nn.Sequential(
                *norm_relu_conv(channels, wide, 1), *norm_relu_conv(wide, config.growth, 3)
            )

        def forward(self, x: Any) -> Any:
            return torch.cat([x, self.new(x)], 1)

    class DenseNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            _, frames, mels = shape
            same = nn.ZeroPad2d((2 + mels % 2, 3, 2 + frames % 2, 3))  # XLA puts the odd one last
            channels = config.stem
            layers = [same, nn.Conv2d(1, channels, 7, 2, bias=False)]
            layers += [*norm_relu(channels), nn.MaxPool2d(3, 2, 1)]
            for block, count in enumerate(config.blocks):
                if block:
                    layers += [*norm_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                    channels //= 2
                for _ in range(count):
                    layers.append(Layer(channels))
                    channels += config.growth
            self.trunk = nn.Sequential(*layers, *norm_relu(channels))
            self.head = nn.Linear(channels, EVENTS)

        def forward(self, features: Any) -> Any:
            return self.head(self.trunk(features[:, None]).mean((2, 3)))

    network = DenseNet()
    for parameter, value in zip(network.parameters(), in_torch_order(params, network), strict=True):
        parameter.data = torch.tensor(value)
    return network


def in_torch_order(tree: Any, network: Any) -> Iterator[np.ndarray]:
    """The leaves of `tree`, our parameters or gradients, in the order and shape of `network.parameters()`."""
    from torch import nn

    seen: Counter[str] = Counter()
    for module in network.modules():
        if not (own := list(module.parameters(recurse=False))):
            continue
        kind = "Conv" if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) else "Dense"
        kind = "BatchNorm" if isinstance(module, nn.BatchNorm2d) else kind
        layer = tree[f"{kind}_{seen[kind]}"]
        seen[kind] += 1
        # Our kernels end in [inputs, outputs], torch's begin with [outputs, inputs].
        weight = layer["scale"] if kind == "BatchNorm" else np.moveaxis(layer["kernel"], (-1, -2), (0, 1))
        for parameter, value in zip(own, (weight, layer.get("bias"))):
            yield np.asarray(value).reshape(tuple(parameter.shape))


def torch_step(network: Any, batch: Batch, how: str) -> Call:
    """A step of a copy of `network` to (logits, gradients), on JAX's kind of device, by one of HOWS."""
    import torch

    # We multiply float32 without TF32, and XLA searches for the fastest algorithm too.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device = torch_device()
    layout = torch.channels_last if "channels last" in how else torch.contiguous_format
    model = copy.deepcopy(network).to(device, memory_format=layout)
    parameters = list(model.parameters())
    model = torch.compile(model) if "compile" in how else model
    features, labels, weight = (torch.tensor(np.array(each), device=device) for each in batch)

    def call() -> Any:
        logits = model(features)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
        return torch_waited(logits, torch.autograd.grad(loss, parameters))

    return call


def off(how: str, network: Any, mine: Any, theirs: Any) -> float:
    """The difference of torch's results `theirs` from `mine`; raises InputError if it is too large."""
    one = np.concatenate([each.ravel() for each in in_torch_order(mine[1], network)])
    other = np.concatenate([each.cpu().numpy().ravel() for each in theirs[1]])
    logits = agree(f"{how}: logits", mine[0], theirs[0].detach().cpu(), CLOSE_LOGITS)
    return max(logits, agree(f"{how}: gradients", one, other, CLOSE_GRADS))


def teacher_rows(rounds: int, shape: Shape = SHAPE, config: DenseNetConfig = TEACHER) -> Iterator[Row]:
    """Our step in float32 beside torch's."""
    batch, model, name = noise(shape), build_model(config, EVENTS), "DenseNet"
    variables = jax.jit(model.init)(jax.random.key(0), batch.features[:1])
    calls, offs = {name: ours(config, variables, batch)}, dict[Any, float | None]()
    if torch_is_here():
        network, mine = torch_densenet(config, variables["params"], shape), calls[name]()
        for how in (how for how in HOWS if not late()):
            call = torch_step(network, batch, how)
            try:
                theirs = call()
            except RuntimeError as error:
                if "compile" not in how:
                    raise
                print(f"{how}: left out, without a C++ compiler or Triton: {error}", flush=True)
                continue
            calls[how], offs[name, how] = call, off(how, network, mine, theirs)
    # Backward takes twice the operations of forward.
    operations = 3 * 2 * model_cost(model, variables, shape[1:])["multiply_adds"]

    def note(seconds: Sequence[float]) -> str:
        per_second = shape[0] / float(np.median(seconds))
        share = operations * per_second / arithmetic()
        return f"{per_second:.2g} clips/s; {share:.0%} of the device's arithmetic"

    what, pairs = "{} x {} x {}, float32".format(*shape), offs or {(name, None): None}
    yield from beside(what, in_turns(calls, rounds), pairs, dict.fromkeys(HOWS, 1.0), note)


def training(step: Any, state: TrainState, batch: dict[str, jax.Array], teacher: Any = None) -> Call:
    """One `step` on `batch` per call, from a copy of `state`; each call frees the result of the one before.

    A `teacher`, a function of features to logits, is applied live, in a program of its own as in a run.
    """
    state = jax.tree.map(jnp.copy, state)

    def call() -> TrainState:
        nonlocal state
        logits = {"teacher_logits": teacher(batch["features"])} if teacher else {}
        state, _ = step(state, batch | logits)
        return jax.block_until_ready(state)

    return call


def gradient(first: TrainState) -> np.ndarray:
    """A tenth of the gradient of the first step, flat: Adam's first moment after it."""
    return np.array(ravel_pytree(optax.tree.get(first.opt_state, "mu"))[0])


def distillation_rows(
    rounds: int,
    shape: Shape = STUDENT_SHAPE,
    student: LSTMConfig = STUDENT,
    teacher: DenseNetConfig = TEACHER,
) -> Iterator[Row]:
    """A student's step with cached logits, beside one without distillation and one with a live teacher."""
    features, labels, weight = noise(shape)
    batch, mels, recipe = {"features": features, "labels": labels}, shape[2], ClipRecipe()
    model, optimizer = build_model(student, EVENTS), make_optimizer(recipe, 3e-3, 1000)
    state = init_state(model, optimizer, shape[1:], (np.zeros(mels), np.ones(mels)), seed=0)
    every = np.ones(EVENTS, bool)
    mine, alone, live = "cached logits", "without distillation", "a live teacher"
    known, unknown, bare = (
        make_train_step(model, optimizer, make_loss(recipe, weight, events))
        for events in (every, ~every, None)
    )
    network = build_model(teacher, EVENTS)
    variables = jax.jit(network.init)(jax.random.key(1), features[:1])
    apply = partial(jax.jit(network.apply), variables)
    cached = batch | {"teacher_logits": apply(features)}
    calls = {
        mine: training(known, state, cached),
        alone: training(bare, state, batch),
        live: training(known, state, batch, apply),
    }
    grads = {name: gradient(call()) for name, call in calls.items()}
    of_unknown = gradient(training(unknown, state, cached)())
    offs = {
        (mine, alone): agree("no event known", of_unknown, grads[alone], CLOSE),
        (mine, live): agree(live, grads[mine], grads[live], CLOSE),
    }
    what = "{} x {} x {}, {} units".format(*shape, student.hidden_size)
    seconds, goals = in_turns(calls, rounds), {alone: 1 / 1.05}
    yield from beside(what, seconds, offs, goals, lambda mine: f"{shape[0] / np.median(mine):.2g} clips/s")
