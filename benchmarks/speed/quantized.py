"""A train step of the LSTM with every operand quantized, beside our float step and what others quantize."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.speed.lstm import (
    SHAPE,
    UNITS,
    Step,
    flax_cell,
    jitted,
    noise,
    ours,
    parameters,
    speed,
    to_torch,
)
from benchmarks.speed.parts import parts
from benchmarks.speed.turns import Row, agree, in_turns
from qkd_jax.config import QuantConfig
from qkd_jax.nn.lstm import lstm_scan
from qkd_jax.nn.lstm_cell import Layer

QUESTION = "A train step with every operand quantized"
ABOUT = """The mean square of all outputs and its gradient in the parameters, 256 units. A loop in torch
has the paper's scheme written anew: its loss and gradient are ours, but for rounding ties. Brevitas
(ranges of whole tensors, learned) and qwix (products alone) quantize otherwise: what is off there is
their outputs against those of our float LSTM, and is quantization. These peers are given 100 steps, as
998 take some of them minutes, and so is ours beside them."""
PACKAGES = ("flax", "torch", "brevitas", "qwix")
SHORT = (64, 100, 64)
SCHEMES: dict[str, Callable[[int], QuantConfig]] = {
    "paper": QuantConfig.paper,
    "paper, ranges by unit": QuantConfig.per_channel,
    "integer": QuantConfig.integer,
}
BITS = (8, 4)
TIES = {8: 0.02, 4: 0.1}
"""What roundings that another order of summation flips do to a gradient."""
NOISE = {8: 0.1, 4: 1.0}
"""How far quantization takes outputs from those in float."""


def quantized(layer: Layer, x: np.ndarray, quant: QuantConfig) -> Step:
    """Our step; in the integer scheme inputs have the unit 1/16 at 8 bits, the cell 2^-12."""
    exponents = {"exponents": jnp.array([quant.activations - 4, 12])} if quant.scheme == "integer" else {}

    def loss(floats: Layer, x: jax.Array) -> jax.Array:
        return jnp.mean(lstm_scan((floats | exponents,), x, quant=quant)[0] ** 2)

    return Step(jitted(loss, layer, x), lambda found: (found[0], found[1]["w"]))


def outputs(layer: Layer, x: np.ndarray) -> jax.Array:
    """Those of our float LSTM, [batch, time, units]."""
    return jax.jit(lambda layer, x: lstm_scan((layer,), x)[0])(layer, x)


def torch_loop(layer: Layer, x: np.ndarray, bits: int) -> Step:
    """The paper's scheme in torch as one writes it: fake-quantized operands, a loop over the steps."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def fake_quant(value: Any, bits: int) -> Any:
        low, high = value.detach().aminmax(dim=-1, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        scale = torch.where(scale > 0, scale, 1.0)
        rounded = torch.round((value.detach() - low) / scale) * scale + low
        return value + (rounded - value.detach())

    w, b = (torch.tensor(np.array(layer[name]), device=device, requires_grad=True) for name in "wb")
    steps = torch.tensor(np.array(x), device=device).unbind(1)
    units = b.numel() // 4

    def call() -> Any:
        # A range for each gate's matrix.
        w_hat = torch.cat([fake_quant(gate.reshape(-1), bits).view_as(gate) for gate in w.split(units, 1)], 1)
        h = c = torch.zeros(len(x), units, device=device)
        hs = []
        for x_t in steps:
            z = fake_quant(torch.cat([h, x_t], 1), bits) @ w_hat + b
            f, i, candidate, o = z.split(units, 1)
            f, i, o = (fake_quant(torch.sigmoid(gate), bits) for gate in (f, i, o))
            c = f * fake_quant(c, 16) + i * fake_quant(torch.tanh(candidate), bits)
            h = o * fake_quant(torch.tanh(c), bits)
            hs.append(h)
        loss = (torch.stack(hs, 1) ** 2).mean()
        grads = torch.autograd.grad(loss, (w, b))
        if device == "cuda":
            torch.cuda.synchronize()
        return loss, grads

    return Step(call, lambda found: (found[0].item(), found[1][0].cpu().numpy()))


def brevitas_lstm(layer: Layer, x: np.ndarray, bits: int) -> tuple[Callable[[], Any], np.ndarray]:
    """QuantLSTM of brevitas, its cell at 8 bits: what is timed, and its outputs."""
    import torch
    from brevitas import config
    from brevitas import nn as quantized

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config.IGNORE_MISSING_KEYS = True  # it has ranges beside the weights
    units = layer["b"].size // 4
    widths = {f"{operand}_bit_width": bits for operand in ("weight", "io", "gate_acc", "sigmoid", "tanh")} | {
        "cell_state_bit_width": 8
    }
    model = quantized.QuantLSTM(x.shape[2], units, batch_first=True, **widths)
    w, b = (np.array(each) for each in to_torch(layer))
    floats = {"weight_ih_l0": w[units:].T, "weight_hh_l0": w[:units].T, "bias_ih_l0": b, "bias_hh_l0": 0 * b}
    model.load_state_dict({name: torch.tensor(value) for name, value in floats.items()})
    model.to(device)
    on_device = torch.tensor(x, device=device)
    weights = [each for each in model.parameters() if each.requires_grad]

    def call() -> Any:
        hs = model(on_device)[0]
        grads = torch.autograd.grad((hs**2).mean(), weights)
        if device == "cuda":
            torch.cuda.synchronize()
        return hs, grads

    return call, call()[0].detach().cpu().numpy()


def qwix_rnn(layer: Layer, x: np.ndarray, bits: int) -> tuple[Callable[[], Any], np.ndarray]:
    """Flax's RNN of an LSTMCell, the operands of its products by qwix: what is timed, and its outputs."""
    import qwix

    cell, units = flax_cell(layer), layer["b"].size // 4
    rule = qwix.QtRule(module_path=".*", weight_qtype=f"int{bits}", act_qtype=f"int{bits}")
    model = qwix.quantize_model(nn.RNN(nn.LSTMCell(units)), qwix.QtProvider([rule]))

    def loss(cell: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(model.apply({"params": {"cell": cell}}, x) ** 2)

    hs = jax.jit(model.apply)({"params": {"cell": cell}}, x)
    return jitted(loss, cell, x), np.asarray(hs)


def rows(
    rounds: int,
    shape: tuple[int, int, int] = SHAPE,
    short: tuple[int, int, int] = SHORT,
    units: int = UNITS,
) -> Iterator[Row]:
    """Ours at 8 and 4 bits in each scheme beside our float step, and the paper's beside each peer."""
    x, layer = noise(shape), parameters(shape[2], units)
    calls = {"float": ours(layer, x).call}
    for scheme, make in SCHEMES.items():
        calls |= {f"{scheme}, {bits} bits": quantized(layer, x, make(bits)).call for bits in BITS}
    seconds = in_turns(calls, rounds)
    for name in (name for name in calls if name != "float"):
        yield Row(
            what=_size(shape, units),
            ours=name,
            peer="our float step",
            seconds=seconds[name],
            peer_seconds=seconds["float"],
            at_least=1 / 1.1,
            note=speed(shape, units, seconds[name]),
        )
    for name in ("float", *(f"{scheme}, {BITS[0]} bits" for scheme in SCHEMES)):
        yield Row(
            what=_size(shape, units),
            ours=f"{name}, its operations",
            seconds=seconds[name],
            note=parts(calls[name]),
        )
    x = noise(short)
    floats = outputs(layer, x)
    for bits in BITS:
        mine = quantized(layer, x, QuantConfig.paper(bits))
        peers, off = {}, {}
        if importlib.util.find_spec("torch"):
            loop = torch_loop(layer, x, bits)
            (loss, grad), (their_loss, their_grad) = mine.read(mine.call()), loop.read(loop.call())
            agree("torch loop: loss", [loss], [their_loss], TIES[bits])
            peers["a loop in torch"] = loop.call
            off["a loop in torch"] = agree("torch loop: gradient", grad, their_grad, TIES[bits])
        others = {"brevitas": brevitas_lstm, "qwix": qwix_rnn}
        for name, make_peer in others.items():
            # XLA has no products of int4 on a CPU.
            if not importlib.util.find_spec(name) or (
                (name, bits) == ("qwix", 4) and jax.default_backend() == "cpu"
            ):
                continue
            peers[name], theirs = make_peer(layer, x, bits)
            off[name] = agree(name, floats, theirs, NOISE[bits])
        seconds = in_turns(peers | {"ours": mine.call}, min(rounds, 3))
        for name in peers:
            yield Row(
                what=_size(short, units),
                ours=f"paper, {bits} bits",
                peer=name,
                seconds=seconds["ours"],
                peer_seconds=seconds[name],
                off=off[name],
                at_least=50.0 if name == "brevitas" else None,
            )


def _size(shape: tuple[int, int, int], units: int) -> str:
    return "{} × {} × {}, {} units".format(*shape, units)
