"""The cost of a model: parameters, multiply-adds and bytes, counted from the model itself."""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from qkd_jax.config import QuantConfig
from qkd_jax.config.fields import OFF
from qkd_jax.models.build import Model
from qkd_jax.models.common import GUIDES

_SIZE, _SHARE = 2048, 0.28


def model_cost(
    model: Model, variables: Any, shape: tuple[int, int], quant: QuantConfig | None = None
) -> dict[str, int]:
    """`parameters`, `bytes`, and for features of `shape` [frames, mels] the work of one clip.

    The work is `multiply_adds` and, but for the integer-only scheme, which the traced program only imitates,
    `quantized_values`.  Parameters are the trained values, so batch-norm
    statistics and the mean and std of the features don't count, nor do layers that only guide training.
    `bytes` is their size: with `quant`, weights packed at its bits and the rest in float32, as in
    `packed_bytes`.
    """
    params = _deployed(variables["params"])
    features = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    cost = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "multiply_adds": multiply_adds(model.apply, variables, features),
        "bytes": packed_bytes(params, quant or QuantConfig()),
    }
    if quant is None or quant.scheme == "paper":
        cost["quantized_values"] = quantized_values(model.apply, variables, features)
    return cost


def packed_bytes(params: Any, quant: QuantConfig) -> int:
    """Bytes of a model's `params` at the bits of `quant`; biases and batch-norms are float32.

    As in the paper, the few bytes of ranges and of a file's header don't count, but ranges per column or
    channel do.  Layers that only guide training count nothing.  Raises ValueError for `quant` other than
    float with a model that is neither an LSTM nor a CRNN.
    """
    params = _deployed(params)
    if quant == QuantConfig():
        return 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    if not {"lstm", "gru"} & set(params):
        raise ValueError(f"params: expected those of an LSTM or CRNN to quantize, got {list(params)}")
    return sum(_leaf_bytes(path, leaf, quant) for path, leaf in jax.tree.leaves_with_path(params))


def _deployed(params: Any) -> Any:
    return {name: part for name, part in params.items() if name not in GUIDES}


def _leaf_bytes(path: Any, leaf: Any, quant: QuantConfig) -> int:
    part, name = path[0].key, path[-1].key
    if not name.startswith("w"):
        return 4 * leaf.size
    bits = quant.weights if part in ("lstm", "gru", "front") else quant.output
    per_column = 0
    if quant.ranges == "channel" and bits != OFF:
        # Floats per column or channel: scale and offset, or in the integer-only scheme a multiplier, which
        # for convolutions replaces the scale of batch-norm.  W_h and W_x of the LSTM are one leaf: twice.
        integer = quant.scheme == "integer"
        per_column = ({"lstm": 2} if integer else {"lstm": 4, "gru": 2, "front": 2}).get(part, 0)
    return -(-leaf.size * bits // 8) + 4 * per_column * leaf.shape[-1]


def multiply_adds(function: Any, *arguments: Any) -> int:
    """Multiply-adds of all matrix products and convolutions in one call (the paper's "FLOPs").

    Counted in the traced program, without computing anything: unused results are left out, loops count as
    often as they run, and of several branches the most expensive one counts.  Raises ValueError for a loop
    of unknown length.

    >>> multiply_adds(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 5)))
    30
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed)


def quantized_values(function: Any, variables: Any, *inputs: Any) -> int:
    """Values that one call function(variables, *inputs) rounds, the work that quantizing adds.

    Those that depend on `variables` alone, such as the codes of weights, are computed once and don't count.

    >>> quantized_values(lambda w, x: jnp.round(w).sum() * jnp.round(x), jnp.ones((3, 5)), jnp.ones(7))
    7
    """
    jaxpr = jax.make_jaxpr(function)(variables, *inputs).jaxpr
    constant = len(jax.tree.leaves(variables))
    return _count_rounded(jaxpr, [index >= constant for index in range(len(jaxpr.invars))])


def training_rate() -> float:
    """About how many multiply-adds a second image networks train at on the device, from a product timed here.

    A DenseNet-63 reaches 28 % of the rate of a large product on two cores (docs/results/speed.md).
    """
    square = jnp.ones((_SIZE, _SIZE))
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    begun = time.perf_counter()
    product(square, square).block_until_ready()
    return _SHARE * _SIZE**3 / (time.perf_counter() - begun)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inputs: list[Any] = [variable.aval for variable in equation.invars]
        outputs: list[Any] = [variable.aval for variable in equation.outvars]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += outputs[0].size * math.prod(inputs[0].shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            channels = inputs[1].shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += outputs[0].size * inputs[1].size // channels
        elif name == "cond":
            total += max(_count(_open(branch)) for branch in equation.params["branches"])
        elif name == "while":
            raise ValueError("expected loops of known length (scan), found a while loop")
        else:
            inner = sum(_count(_open(value)) for value in equation.params.values() if _is_jaxpr(value))
            total += inner * (equation.params["length"] if name == "scan" else 1)
    return total


def _count_rounded(jaxpr: core.Jaxpr, depends: Sequence[bool]) -> int:
    """The values rounded, of those that depend on the arguments for which `depends` is true."""
    known = {variable for variable, each in zip(jaxpr.invars, depends) if each}
    total = 0
    for equation in _needed(jaxpr):
        outputs: list[Any] = [variable.aval for variable in equation.outvars]
        inputs = [isinstance(each, core.Var) and each in known for each in equation.invars]
        if not any(inputs):
            continue
        known.update(equation.outvars)
        if equation.primitive.name == "round":
            total += outputs[0].size
        length = 1
        if equation.primitive.name == "scan":
            length, consts = equation.params["length"], equation.params["num_consts"]
            carry = slice(consts, consts + equation.params["num_carry"])
            inputs[carry] = [True] * equation.params["num_carry"]
        inner = [_open(value) for value in equation.params.values() if _is_jaxpr(value)]
        total += length * sum(_count_rounded(each, inputs[-len(each.invars) :]) for each in inner)
    return total


def _needed(jaxpr: core.Jaxpr) -> list[Any]:
    """The equations whose results are used; unlike `dce_jaxpr`, it looks into functions with a custom_jvp."""
    used: set[Any] = {each for each in jaxpr.outvars if isinstance(each, core.Var)}
    equations = []
    for equation in reversed(jaxpr.eqns):
        if used.isdisjoint(equation.outvars):
            continue
        equations.append(equation)
        arguments = [True] * len(equation.invars)
        if equation.primitive.name == "custom_jvp_call":
            inner = _open(equation.params["call_jaxpr"])
            _, arguments = dce_jaxpr(inner, [True] * len(inner.outvars))
        used.update(
            each for each, use in zip(equation.invars, arguments) if use and isinstance(each, core.Var)
        )
    return equations[::-1]


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _open(value: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
