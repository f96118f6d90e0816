"""Models of waveforms, built node by node."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

Shape = Sequence[int | str]
"""Sizes; a name stands for any size."""


class Graph:
    """An ONNX graph; `constant` and `add` return the name of a tensor."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, value) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        names = [item if isinstance(item, str) else self.constant(item) for item in inputs]
        self.nodes.append(helper.make_node(kind, names, [f"n{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def write(self, path: Path, shape: Shape, outputs: Mapping[str, Shape]) -> Path:
        waveform = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, shape)
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, out) for name, out in outputs.items()]
        graph = helper.make_graph(self.nodes, "model", [waveform], infos, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        save(model, path)
        return path


def write_loudness(path: Path, shape: Shape, gains: Sequence[float]) -> Path:
    """Write a model of a waveform x whose outputs are |x| and, for each gain, the score gain · max |x|.

    The suffix of `path` selects ONNX or LiteRT.  LiteRT's tensors are named `waveform`,
    `absolute`, `loudest` and `scores`, the constants `loudest/axis` and `gains`, and `absolute/codes`,
    which is round(64 |x|) - 128 in int8.
    """
    if path.suffix == ".tflite":
        return _write_loudness_litert(path, shape, gains)
    graph = Graph()
    absolute = graph.add("Abs", "waveform")
    loudest = graph.add("ReduceMax", absolute, keepdims=0)
    scores = graph.add("Mul", np.asarray([gains], np.float32), loudest)
    return graph.write(path, shape, {absolute: shape, scores: (1, len(gains))})


def _write_loudness_litert(path: Path, shape: Shape, gains: Sequence[float]) -> Path:
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [], [graph]
    graph.tensors, graph.operators = [], []

    def tensor(name: str, shape: Shape, value: np.ndarray | None = None) -> int:
        new = schema.TensorT()
        new.name = name
        new.shapeSignature = [-1 if isinstance(size, str) else size for size in shape]
        new.shape, new.buffer = [abs(size) for size in new.shapeSignature], 0
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = list(value.tobytes())
            new.type = {"f": schema.TensorType.FLOAT32, "i": schema.TensorType.INT32}[value.dtype.kind]
            new.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(new)
        return len(graph.tensors) - 1

    def add(kind: str, inputs: Sequence[int], output: int, options: str, **settings: Any) -> None:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
        operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes), inputs, [output]
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        operator.builtinOptions = getattr(schema, f"{options}T")()
        vars(operator.builtinOptions).update(settings)
        model.operatorCodes.append(code)
        graph.operators.append(operator)

    waveform, absolute, codes = (tensor(name, shape) for name in ("waveform", "absolute", "absolute/codes"))
    loudest, scores = tensor("loudest", [1] * len(shape)), tensor("scores", (1, len(gains)))
    axis = tensor("loudest/axis", [1], np.array([len(shape) - 1], np.int32))
    factors = tensor("gains", (1, len(gains)), np.asarray(gains, np.float32))
    graph.tensors[codes].type = schema.TensorType.INT8
    graph.tensors[codes].quantization = schema.QuantizationParametersT(scale=[1 / 64], zeroPoint=[-128])
    add("ABS", [waveform], absolute, "AbsOptions")
    add("QUANTIZE", [absolute], codes, "QuantizeOptions")
    add("REDUCE_MAX", [absolute, axis], loudest, "ReducerOptions", keepDims=True)
    add("MUL", [factors, loudest], scores, "MulOptions")
    graph.inputs, graph.outputs = [waveform], [absolute, scores]
    builder = Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def write_spectrum(path: Path, samples: int, pitches: Sequence[float], rate: int) -> Path:
    """Write an ONNX model of a waveform [1, samples] with two outputs for `pitches`, in Hz.

    `levels` [1, pitches] is the log of the mean power at each, and `scores` its sigmoid, around -6.
    """
    time, graph = np.arange(samples) / rate, Graph()
    waves = np.exp(2j * np.pi * np.outer(time, pitches)) / samples
    basis = np.concatenate([waves.real, waves.imag], axis=1).astype(np.float32)
    parts = graph.add("MatMul", "waveform", basis)
    squares = graph.add("Reshape", graph.add("Mul", parts, parts), np.array([1, 2, len(pitches)]))
    power = graph.add("ReduceSum", squares, np.array([1]), keepdims=0)
    levels = graph.add("Log", graph.add("Add", power, np.float32(1e-6)))
    scores = graph.add("Sigmoid", graph.add("Add", levels, np.float32(6)))
    for name, tensor in {"levels": levels, "scores": scores}.items():
        graph.nodes.append(helper.make_node("Identity", [tensor], [name]))
    shape = (1, len(pitches))
    return graph.write(path, (1, samples), {"scores": shape, "levels": shape})
