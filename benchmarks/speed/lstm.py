"""A train step of the LSTM, in float beside other implementations, and with every operand quantized."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.speed.measure import Call, Row, agree, arithmetic, bandwidth, beside, in_turns, late, waited
from qkd_jax.config import QuantConfig
from qkd_jax.nn.lstm import lstm_init, lstm_scan
from qkd_jax.nn.lstm_cell import Layer

Shape = tuple[int, int, int]
FLOAT = QuantConfig()
SHAPE, SHORT, HIDDEN_SIZE = (64, 998, 64), (64, 100, 64), 256
CLOSE = 2e-3
"""Orders of summation, and on a GPU products of TF32, over all steps."""
SCHEMES: dict[str, Callable[[int], QuantConfig]] = {
    "paper": QuantConfig.paper,
    "paper, ranges by unit": QuantConfig.per_channel,
    "integer": QuantConfig.integer,
}
BITS = (8, 4)
TIES = {8: 0.02, 4: 0.1}
"""What roundings that another order of summation flips do to a gradient."""


class Step(NamedTuple):
    """What is timed, and how to read the loss and the gradient of w from its result."""

    call: Call
    read: Callable[[Any], tuple[Any, Any]]


def noise(shape: Shape) -> np.ndarray:
    """Sequences, float32 [batch, time, inputs]."""
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def parameters(inputs: int, hidden_size: int) -> Layer:
    """The parameters of one layer with a short memory."""
    return lstm_init(jax.random.key(0), inputs, hidden_size, steps=50)[0]


def jitted(loss: Callable[[Any, jax.Array], jax.Array], params: Any, x: np.ndarray) -> Call:
    """`loss` of `params` on `x`, and its gradient in `params`."""
    return partial(waited, jax.jit(jax.value_and_grad(loss)), params, jnp.asarray(x))


def ours(layer: Layer, x: np.ndarray, quant: QuantConfig = FLOAT) -> Step:
    """`lstm_scan` with its own derivative; in the integer-only scheme inputs have 1/16 as scale at 8 bits."""
    exponents = {"exponents": jnp.array([quant.activations - 4, 12])} if quant.scheme == "integer" else {}

    def loss(floats: Layer, x: jax.Array) -> jax.Array:
        return jnp.mean(lstm_scan((floats | exponents,), x, quant=quant)[0] ** 2)

    return Step(jitted(loss, layer, x), lambda result: (result[0], result[1]["w"]))


def plain_scan(layer: Layer, x: np.ndarray) -> Step:
    """The straightforward implementation: JAX differentiates a scan over the steps."""

    def loss(layer: Layer, x: jax.Array) -> jax.Array:
        def step(state: Any, x_t: jax.Array) -> Any:
            h, c = state
            f, i, candidate, o = jnp.split(jnp.concatenate([h, x_t], 1) @ layer["w"] + layer["b"][None], 4, 1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(candidate)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((len(x), layer["b"].size // 4))
        return jnp.mean(jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))[1] ** 2)

    return Step(jitted(loss, layer, x), lambda result: (result[0], result[1]["w"]))


def flax_rnn(layer: Layer, x: np.ndarray) -> Step:
    """`flax.linen.RNN` over an OptimizedLSTMCell, which has a matrix of h and one of x per gate."""
    hidden_size = layer["b"].size // 4
    model, cell = nn.RNN(nn.OptimizedLSTMCell(hidden_size)), {}
    for gate, w, b in zip("figo", jnp.split(layer["w"], 4, axis=1), jnp.split(layer["b"], 4)):
        cell[f"h{gate}"] = {"kernel": w[:hidden_size], "bias": b}
        cell[f"i{gate}"] = {"kernel": w[hidden_size:]}

    def loss(cell: Any, x: jax.Array) -> jax.Array:
        hs: Any = model.apply({"params": {"cell": cell}}, x)
        return jnp.mean(hs**2)

    def read(result: Any) -> tuple[Any, Any]:
        grads = result[1]
        gates = [jnp.concatenate([grads[f"{part}{gate}"]["kernel"] for part in "hi"]) for gate in "figo"]
        return result[0], jnp.concatenate(gates, axis=1)

    return Step(jitted(loss, cell, x), read)


def torch_lstm(layer: Layer, x: np.ndarray) -> Step:
    """`torch.nn.LSTM`, which is cuDNN's on a GPU."""
    import torch

    device, hidden_size = torch_device(), layer["b"].size // 4
    model = torch.nn.LSTM(x.shape[2], hidden_size, batch_first=True).to(device)
    w, b = _torch_gates(layer["w"]), _torch_gates(layer["b"])
    weights, on_device = list(model.parameters()), torch.tensor(x, device=device)
    for weight, value in zip(weights, (w[hidden_size:].T, w[:hidden_size].T, b, 0 * b)):
        weight.data.copy_(torch.tensor(np.array(value)))

    def call() -> Any:
        loss = (model(on_device)[0] ** 2).mean()
        return torch_waited(loss, torch.autograd.grad(loss, weights))

    def read(result: Any) -> tuple[Any, Any]:
        loss, (of_x, of_h, *_) = result
        return loss.item(), _torch_gates(np.concatenate([of_h.cpu().numpy(), of_x.cpu().numpy()], axis=1).T)

    return Step(call, read)


def torch_loop(layer: Layer, x: np.ndarray, bits: int) -> Step:
    """The paper's scheme in torch as one would write it: fake-quantized operands, a loop over the steps."""
    import torch

    device = torch_device()

    def fake_quant(value: Any, bits: int) -> Any:
        low, high = value.detach().aminmax(dim=-1, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        scale = torch.where(scale > 0, scale, 1.0)
        rounded = torch.round((value.detach() - low) / scale) * scale + low
        return value + (rounded - value.detach())

    w, b = (torch.tensor(np.array(layer[name]), device=device, requires_grad=True) for name in "wb")
    steps = torch.tensor(np.array(x), device=device).unbind(1)
    hidden_size = b.numel() // 4

    def call() -> Any:
        # One range for the matrix of each gate.
        w_hat = torch.cat(
            [fake_quant(gate.reshape(-1), bits).view_as(gate) for gate in w.split(hidden_size, 1)], 1
        )
        h = c = torch.zeros(len(x), hidden_size, device=device)
        hs = []
        for x_t in steps:
            z = fake_quant(torch.cat([h, x_t], 1), bits) @ w_hat + b
            f, i, candidate, o = z.split(hidden_size, 1)
            f, i, o = (fake_quant(torch.sigmoid(gate), bits) for gate in (f, i, o))
            c = f * fake_quant(c, 16) + i * fake_quant(torch.tanh(candidate), bits)
            h = o * fake_quant(torch.tanh(c), bits)
            hs.append(h)
        loss = (torch.stack(hs, 1) ** 2).mean()
        return torch_waited(loss, torch.autograd.grad(loss, (w, b)))

    return Step(call, lambda result: (result[0].item(), result[1][0].cpu().numpy()))


def torch_is_here() -> bool:
    """Whether torch is installed, with a GPU if JAX uses one."""
    if not importlib.util.find_spec("torch"):
        return False
    import torch

    return torch.cuda.is_available() or jax.default_backend() != "gpu"


def torch_device() -> str:
    """The kind of device that JAX uses, as torch names it."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def torch_waited(*results: Any) -> Any:
    """`results`, once torch has computed them."""
    import torch

    if torch_device() == "cuda":
        torch.cuda.synchronize()
    return results


def _torch_gates(array: Any) -> jax.Array:
    """An array whose gates f, i, c, o become i, f, c, o, the order of torch, or the reverse."""
    one, other, *rest = jnp.split(jnp.asarray(array), 4, axis=-1)
    return jnp.concatenate([other, one, *rest], axis=-1)


def same(name: str, step: Step, peer: Step, within: float) -> float:
    """The difference of the peer's gradient; raises InputError if it or the loss is not `within` ours."""
    (loss, grad), (their_loss, their_grad) = step.read(step.call()), peer.read(peer.call())
    agree(f"{name}: loss", [loss], [their_loss], within)
    return agree(f"{name}: gradient", grad, their_grad, within)


def title(shape: Shape, hidden_size: int) -> str:
    """The column "what" of a row."""
    return "{} × {} × {}, {} units".format(*shape, hidden_size)


def work(batch: int, steps: int, inputs: int, hidden_size: int) -> tuple[float, float]:
    """Operations of a train step's products (forward, backward, weights), and the bytes that it must move.

    Inputs are read twice, h is written and read, and so are the six slopes of each unit.
    """
    operations = 2 * batch * steps * 4 * hidden_size * (2 * (inputs + hidden_size) + hidden_size)
    return operations, 4 * batch * steps * (2 * inputs + 2 * hidden_size + 12 * hidden_size)


def speed(shape: Shape, hidden_size: int, seconds: Sequence[float]) -> str:
    """Clips per second, and the share of the device's peak arithmetic and bandwidth."""
    middle = float(np.median(seconds))
    (operations, moved), clips = work(*shape, hidden_size), shape[0] / middle
    shares = f"{operations / middle / arithmetic():.0%}", f"{moved / middle / bandwidth():.0%}"
    return f"{clips:.0f} clips/s; {shares[0]} of the device's arithmetic, {shares[1]} of its bandwidth"


def float_rows(rounds: int, shape: Shape = SHAPE, hidden_size: int = HIDDEN_SIZE) -> Iterator[Row]:
    """Our float step beside each peer."""
    x, layer, torch = noise(shape), parameters(shape[2], hidden_size), "torch nn.LSTM"
    makers = {"lstm_scan": ours, "a plain scan": plain_scan, "flax RNN": flax_rnn}
    makers |= {torch: torch_lstm} if torch_is_here() else {}
    steps = {name: make(layer, x) for name, make in makers.items()}
    off = {("lstm_scan", name): same(name, steps["lstm_scan"], steps[name], CLOSE) for name in [*steps][1:]}
    goal = 1 / 1.2 if jax.default_backend() == "gpu" else 1.0  # cuDNN's on a GPU
    seconds = in_turns({name: step.call for name, step in steps.items()}, rounds)
    yield from beside(
        title(shape, hidden_size), seconds, off, {torch: goal}, partial(speed, shape, hidden_size)
    )


def quantized_rows(
    rounds: int, shape: Shape = SHAPE, short: Shape = SHORT, hidden_size: int = HIDDEN_SIZE
) -> Iterator[Row]:
    """Our step in each scheme beside our float step, and the paper's scheme beside a loop in torch."""
    x, layer, peer, loop = (
        noise(shape),
        parameters(shape[2], hidden_size),
        "our float step",
        "a loop in torch",
    )
    schemes = {f"{name}, {bits} bits": make(bits) for name, make in SCHEMES.items() for bits in BITS}
    calls = {name: ours(layer, x, quant).call for name, quant in {peer: FLOAT, **schemes}.items()}
    pairs, note = {(name, peer): None for name in schemes}, partial(speed, shape, hidden_size)
    yield from beside(title(shape, hidden_size), in_turns(calls, rounds), pairs, {peer: 1 / 1.1}, note)
    for bits in [] if not torch_is_here() or late() else BITS:
        x, name = noise(short), f"paper, {bits} bits"
        steps = {name: ours(layer, x, schemes[name]), loop: torch_loop(layer, x, bits)}
        off = {(name, loop): same(loop, steps[name], steps[loop], TIES[bits])}
        seconds = in_turns({name: step.call for name, step in steps.items()}, min(rounds, 3))
        yield from beside(title(short, hidden_size), seconds, off)
