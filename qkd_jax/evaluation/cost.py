"""What a model costs: parameters, multiply-adds and bytes, counted from the model itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from qkd_jax.config import QuantConfig
from qkd_jax.models.build import Model
from qkd_jax.quant.fake_quant import OFF


def model_cost(
    model: Model, variables: Any, shape: tuple[int, int], quant: QuantConfig | None = None
) -> dict[str, int]:
    """`parameters`, `multiply_adds` for features of `shape` [frames, mels], and `bytes`.

    Parameters are those that training moves (batch-norm statistics and CMVN are not among
    them).  With `quant`, the LSTM's weights count at its bits, packed; the rest is float32.
    """
    params = variables["params"]
    features = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "multiply_adds": multiply_adds(model.apply, variables, features),
        "bytes": packed_bytes(params, OFF if quant is None else quant.weights),
    }


def packed_bytes(params: Any, weight_bits: int) -> int:
    """Bytes of `params` with the LSTM's weights at `weight_bits`, biases and other layers float32."""

    def size(path: tuple, leaf: Any) -> int:
        keys = [getattr(key, "key", None) for key in path]
        bits = weight_bits if keys[0] == "lstm" and keys[-1] == "w" else 32
        return -(-leaf.size * bits // 8)

    return sum(size(path, leaf) for path, leaf in jax.tree.leaves_with_path(params))


def multiply_adds(function: Any, *arguments: Any) -> int:
    """Multiply-adds of all matrix products and convolutions in one call (the paper's "FLOPs").

    Read off the traced program, loops counted as often as they run, of branches the
    dearest; nothing is computed.
    Raises ValueError for a loop of unknown length.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


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


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _open(value: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
