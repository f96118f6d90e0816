"""A train step of the float LSTM: its outputs, and the gradient in its parameters."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.speed.limit import lstm_work, shares
from benchmarks.speed.parts import waited
from benchmarks.speed.turns import Call, Row, agree, in_turns
from qkd_jax.nn.lstm import lstm_init, lstm_scan
from qkd_jax.nn.lstm_cell import Layer

QUESTION = "A train step of the float LSTM"
ABOUT = """The mean square of all outputs and its gradient in the parameters: 64 sequences of 998 steps,
64 inputs, 256 units, float32. Peers have our weights, their gates in an order of their own; losses and
gradients in the weights are compared."""
PACKAGES = ("flax", "torch")
SHAPE, UNITS = (64, 998, 64), 256
CLOSE = 2e-3
"""Orders of summation, and on a GPU products of TF32, over all the steps."""


class Step(NamedTuple):
    """What is timed, and how to read the loss and the gradient of w from what it returns."""

    call: Call
    read: Callable[[Any], tuple[Any, Any]]


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    """Sequences, float32 [batch, time, inputs]."""
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def parameters(inputs: int, units: int) -> Layer:
    """Those of one layer with short memories."""
    return lstm_init(jax.random.key(0), inputs, units, steps=50)[0]


def jitted(loss: Callable[[Any, jax.Array], jax.Array], params: Any, x: np.ndarray) -> Call:
    """`loss` of `params` on `x`, and its gradient in `params`."""
    return partial(waited, jax.jit(jax.value_and_grad(loss)), params, jnp.asarray(x))


def ours(layer: Layer, x: np.ndarray, **settings: Any) -> Step:
    """`lstm_scan` with its own derivative."""

    def loss(layer: Layer, x: jax.Array) -> jax.Array:
        return jnp.mean(lstm_scan((layer,), x, **settings)[0] ** 2)

    return Step(jitted(loss, layer, x), lambda found: (found[0], found[1]["w"]))


def plain_scan(layer: Layer, x: np.ndarray) -> Step:
    """What one writes without further thought: JAX differentiates a scan over the steps."""

    def loss(layer: Layer, x: jax.Array) -> jax.Array:
        def step(state: Any, x_t: jax.Array) -> Any:
            h, c = state
            f, i, candidate, o = jnp.split(jnp.concatenate([h, x_t], 1) @ layer["w"] + layer["b"][None], 4, 1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(candidate)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((len(x), layer["b"].size // 4))
        return jnp.mean(jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))[1] ** 2)

    return Step(jitted(loss, layer, x), lambda found: (found[0], found[1]["w"]))


def flax_rnn(layer: Layer, x: np.ndarray) -> Step:
    """`flax.linen.RNN` over an OptimizedLSTMCell."""
    model = nn.RNN(nn.OptimizedLSTMCell(layer["b"].size // 4))

    def loss(cell: Any, x: jax.Array) -> jax.Array:
        hs: Any = model.apply({"params": {"cell": cell}}, x)
        return jnp.mean(hs**2)

    def read(found: Any) -> tuple[Any, Any]:
        grads = found[1]
        gates = [jnp.concatenate([grads[f"{part}{gate}"]["kernel"] for part in "hi"]) for gate in "figo"]
        return found[0], jnp.concatenate(gates, axis=1)

    return Step(jitted(loss, flax_cell(layer), x), read)


def flax_cell(layer: Layer) -> dict[str, dict[str, jax.Array]]:
    """The parameters of a cell of Flax, a matrix of h and one of x for each gate."""
    units = layer["b"].size // 4
    cell: dict[str, dict[str, jax.Array]] = {}
    for gate, w, b in zip("figo", jnp.split(layer["w"], 4, axis=1), jnp.split(layer["b"], 4)):
        cell[f"h{gate}"], cell[f"i{gate}"] = {"kernel": w[:units], "bias": b}, {"kernel": w[units:]}
    return cell


def cudnn(layer: Layer, x: np.ndarray) -> Step:
    """cuDNN's, as `jax.experimental.rnn` calls it; on a GPU alone."""
    from jax.experimental import rnn

    (batch, steps, inputs), units = x.shape, layer["b"].size // 4
    w, b = to_torch(layer)
    # cuDNN's flat weights: the inputs' matrices, the recurrent ones, then two biases.
    flat = jnp.concatenate([w[units:].T.ravel(), w[:units].T.ravel(), b, jnp.zeros_like(b)])
    lengths, zeros = jnp.full(batch, steps), jnp.zeros((1, batch, units))

    def loss(flat: jax.Array, x: jax.Array) -> jax.Array:
        hs, *_ = rnn.lstm(
            x, zeros, zeros, flat, lengths, inputs, units, num_layers=1, dropout=0.0, bidirectional=False
        )
        return jnp.mean(hs**2)

    def read(found: Any) -> tuple[Any, Any]:
        of_x, of_h, _ = jnp.split(found[1], [4 * units * inputs, 4 * units * (inputs + units)])
        of_w = jnp.concatenate([of_h.reshape(4 * units, units), of_x.reshape(4 * units, inputs)], axis=1)
        return found[0], from_torch(of_w.T)

    return Step(jitted(loss, flat, x), read)


def torch_lstm(layer: Layer, x: np.ndarray) -> Step:
    """`torch.nn.LSTM`, which on a GPU is cuDNN's."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    units = layer["b"].size // 4
    model = torch.nn.LSTM(x.shape[2], units, batch_first=True).to(device)
    w, b = to_torch(layer)
    found = {"weight_ih_l0": w[units:].T, "weight_hh_l0": w[:units].T, "bias_ih_l0": b, "bias_hh_l0": 0 * b}
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in found.items()})
    on_device = torch.tensor(x, device=device)
    weights = list(model.parameters())

    def call() -> Any:
        loss = (model(on_device)[0] ** 2).mean()
        grads = torch.autograd.grad(loss, weights)
        if device == "cuda":
            torch.cuda.synchronize()
        return loss, grads

    def read(result: Any) -> tuple[Any, Any]:
        loss, (of_x, of_h, *_) = result
        return loss.item(), from_torch(np.concatenate([of_h.cpu().numpy(), of_x.cpu().numpy()], axis=1).T)

    return Step(call, read)


def to_torch(layer: Layer) -> tuple[jax.Array, jax.Array]:
    """Matrix and bias, their gates in the order i, f, c, o of torch and cuDNN."""
    return _swapped(layer["w"]), _swapped(layer["b"])


def from_torch(w: Any) -> jax.Array:
    """A matrix of torch's or cuDNN's gates in the order f, i, c, o."""
    return _swapped(w)


def _swapped(array: Any) -> jax.Array:
    one, other, *rest = jnp.split(jnp.asarray(array), 4, axis=-1)
    return jnp.concatenate([other, one, *rest], axis=-1)


def speed(shape: tuple[int, int, int], units: int, seconds: Sequence[float]) -> str:
    """Clips a second, and what share of the device that is."""
    middle = float(np.median(seconds))
    return f"{shape[0] / middle:.0f} clips a second; {shares(*lstm_work(*shape, units), middle)}"


def steps(layer: Layer, x: np.ndarray) -> dict[str, Step]:
    """Ours, and the peers that are here."""
    found = {"ours": ours(layer, x), "a plain scan": plain_scan(layer, x), "flax RNN": flax_rnn(layer, x)}
    if jax.default_backend() == "gpu":
        found["cuDNN by jax.experimental.rnn"] = cudnn(layer, x)
    if importlib.util.find_spec("torch"):
        found["torch nn.LSTM"] = torch_lstm(layer, x)
    return found


def rows(rounds: int, shape: tuple[int, int, int] = SHAPE, units: int = UNITS) -> Iterator[Row]:
    """Ours beside each peer."""
    x, layer = noise(shape), parameters(shape[2], units)
    ways = steps(layer, x)
    loss, grad = ways["ours"].read(ways["ours"].call())
    off = {}
    for name, way in ways.items():
        their_loss, their_grad = way.read(way.call())
        agree(name, [loss], [their_loss], CLOSE)
        off[name] = agree(name, grad, their_grad, CLOSE)
    seconds = in_turns({name: way.call for name, way in ways.items()}, rounds)
    gpu = jax.default_backend() == "gpu"
    mine = seconds.pop("ours")
    for name, theirs in seconds.items():
        fast = "cuDNN" in name or "torch" in name
        yield Row(
            what="{} × {} × {}, {} units".format(*shape, units),
            ours="lstm_scan",
            peer=name,
            seconds=mine,
            peer_seconds=theirs,
            off=off[name],
            at_least=(1 / 1.2 if gpu else 1.0) if fast else None,
            note=speed(shape, units, mine),
        )
