"""A train step of the teacher, DenseNet-63: its logits, and the gradient in all its parameters."""

import copy
import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed.limit import arithmetic
from benchmarks.speed.parts import parts, waited
from benchmarks.speed.turns import Call, Row, agree, in_turns
from qkd_jax.config import RunConfig, TeacherConfig
from qkd_jax.distill.objectives import weighted_bce
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.models.build import build_model

QUESTION = "A train step of the teacher, DenseNet-63"
ABOUT = """Weighted binary cross-entropy by the batch's statistics, and its gradient in all parameters:
batch 16, 998 x 64 features, no optimizer and no TF32 on either side. Torch's modules have our weights,
padding and batch-norm. Logits and gradients are compared; in bfloat16, whose roundings move the gradients of
noise by half on either side, those of the last layer alone."""
PACKAGES = ("torch",)
CONFIG = RunConfig()
SHAPE = (16, CONFIG.frames, CONFIG.features.n_mels)
TEACHER = CONFIG.teacher
EVENTS = 3
ON_GPU = jax.default_backend() == "gpu"
HOWS = ("torch", "torch channels last", "torch.compile channels last")
CLOSE_LOGITS = {"float32": 1e-4, "bfloat16": 0.1}
CLOSE_GRADS = {"float32": 1e-2, "bfloat16": 0.1}
"""Another order of summation switches a few ReLUs, and with them gradients of the layers below."""


class Batch(NamedTuple):
    """What a step learns from."""

    features: jax.Array
    """Float32 [batch, frames, mels]."""
    labels: jax.Array
    """0 or 1, float32 [batch, events]."""
    weight: jax.Array
    """Of positive labels, float32 [events]."""


def noise(shape: tuple[int, int, int]) -> Batch:
    """Features of `shape`, and labels of chance."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(0, 1, shape), rng.integers(0, 2, (shape[0], EVENTS))
    return Batch(*(jnp.asarray(each, jnp.float32) for each in (features, labels, np.linspace(1, 3, EVENTS))))


def ours(config: TeacherConfig, variables: Any, batch: Batch) -> Call:
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


def torch_is_here() -> bool:
    """Whether torch is installed, and computes on a GPU if JAX does."""
    if not importlib.util.find_spec("torch"):
        return False
    import torch

    return torch.cuda.is_available() or not ON_GPU


def torch_densenet(config: TeacherConfig, params: Any, shape: tuple[int, int, int]) -> Any:
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
            half = config.compute_dtype == "bfloat16"
            with torch.autocast(features.device.type, torch.bfloat16, enabled=half):
                x = self.trunk(features[:, None])
            return self.head(x.float().mean((2, 3)))

    network = DenseNet()
    for parameter, value in zip(network.parameters(), in_torch_order(params, network), strict=True):
        parameter.data = torch.tensor(value)
    return network


def in_torch_order(tree: Any, network: Any) -> Iterator[np.ndarray]:
    """The leaves of `tree`, our parameters or gradients, in order and shape as `network.parameters()`."""
    from torch import nn

    seen: Counter[str] = Counter()
    for module in network.modules():
        if not (own := list(module.parameters(recurse=False))):
            continue
        kind = "Conv" if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) else "Dense"
        kind = "BatchNorm" if isinstance(module, nn.BatchNorm2d) else kind
        layer = tree[f"{kind}_{seen[kind]}"]
        seen[kind] += 1
        # Ours ends in [inputs, outputs], torch's begins with [outputs, inputs].
        weight = layer["scale"] if kind == "BatchNorm" else np.moveaxis(layer["kernel"], (-1, -2), (0, 1))
        for parameter, value in zip(own, (weight, layer.get("bias"))):
            yield np.asarray(value).reshape(tuple(parameter.shape))


def torch_step(network: Any, batch: Batch, how: str) -> Call:
    """A step of a copy of `network` to (logits, gradients), on JAX's kind of device, by one of HOWS."""
    import torch

    # Ours multiplies float32 as such, and XLA looks for what is fastest too.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device = "cuda" if ON_GPU else "cpu"
    layout = torch.channels_last if "channels last" in how else torch.contiguous_format
    model = copy.deepcopy(network).to(device, memory_format=layout)
    parameters = list(model.parameters())
    model = torch.compile(model) if "compile" in how else model
    features, labels, weight = (torch.tensor(np.array(each), device=device) for each in batch)

    def call() -> Any:
        logits = model(features)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
        grads = torch.autograd.grad(loss, parameters)
        if device == "cuda":
            torch.cuda.synchronize()
        return logits, grads

    return call


def off(how: str, dtype: str, network: Any, mine: Any, theirs: Any) -> float:
    """How far `theirs`, found by torch, is off `mine`; raises InputError if that is too far."""
    ours, others = list(in_torch_order(mine[1], network)), [each.cpu().numpy() for each in theirs[1]]
    layers = slice(-2, None) if dtype == "bfloat16" else slice(None)
    one, other = (np.concatenate([each.ravel() for each in grads[layers]]) for grads in (ours, others))
    logits = agree(f"{how}: logits", mine[0], theirs[0].detach().cpu(), CLOSE_LOGITS[dtype])
    return max(logits, agree(f"{how}: gradients", one, other, CLOSE_GRADS[dtype]))


def speed(
    config: TeacherConfig, variables: Any, shape: tuple[int, int, int], seconds: Sequence[float]
) -> str:
    """Clips a second, and what share that is of the device's arithmetic: forward, and twice that back."""
    clip = 2 * model_cost(build_model(config, EVENTS), variables, shape[1:])["multiply_adds"]
    a_second = shape[0] / float(np.median(seconds))
    share = 3 * clip * a_second / arithmetic(config.compute_dtype)
    return f"{a_second:.2g} clips a second; {share:.0%} of the device's arithmetic"


def rows(
    rounds: int,
    shape: tuple[int, int, int] = SHAPE,
    config: TeacherConfig = TEACHER,
    hows: tuple[str, ...] = HOWS,
) -> Iterator[Row]:
    """Ours beside torch's, in float32, and on a GPU in bfloat16."""
    batch = noise(shape)
    for dtype in ("float32", "bfloat16") if ON_GPU else ("float32",):
        typed = dataclasses.replace(config, compute_dtype=dtype)
        variables = jax.jit(build_model(typed, EVENTS).init)(jax.random.key(0), batch.features[:1])
        calls, offs = {"ours": ours(typed, variables, batch)}, {}
        if torch_is_here():
            network, found = torch_densenet(typed, variables["params"], shape), calls["ours"]()
            for how in hows:
                call = torch_step(network, batch, how)
                try:
                    theirs = call()
                except RuntimeError as error:
                    if "compile" not in how:
                        raise
                    # For want of a C++ compiler, or of Triton.
                    print(f"{how}: left out: {error}", flush=True)
                    continue
                calls[how], offs[how] = call, off(how, dtype, network, found, theirs)
        seconds = in_turns(calls, rounds)
        mine = seconds.pop("ours")
        peers: list[str | None] = [*seconds] or [None]
        for peer in peers:
            yield Row(
                what="{} x {} x {}, {}".format(*shape, dtype),
                ours="DenseNet",
                peer=peer,
                seconds=mine,
                peer_seconds=seconds[peer] if peer else (),
                off=offs[peer] if peer else None,
                at_least=1.0 if peer else None,
                note=speed(typed, variables, shape, mine),
            )
        yield Row(
            what="{} x {} x {}, {}".format(*shape, dtype),
            ours="DenseNet, its operations",
            seconds=mine,
            note=parts(calls["ours"]),
        )
