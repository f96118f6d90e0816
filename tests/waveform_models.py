"""Models of waveforms, built node by node: one that computes a simple formula, and our DenseNet."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import librosa
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from qkd_jax.config import DenseNetConfig, FeatureConfig


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

    def write(
        self, path: Path, shape: Sequence[int | str], outputs: Mapping[str, Sequence[int | str]]
    ) -> Path:
        waveform = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, shape)
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, out) for name, out in outputs.items()]
        graph = helper.make_graph(self.nodes, "model", [waveform], infos, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        save(model, path)
        return path


def write_loudness(path: Path, shape: Sequence[int | str], gains: Sequence[float]) -> Path:
    """Write a model of a waveform x whose outputs are |x| and, for each gain, the score gain · max |x|.

    The suffix of `path` selects ONNX or LiteRT; a name in `shape` stands for any size.  LiteRT's tensors are
    named `waveform`, `absolute`, `loudest` and `scores`, the constants `loudest/axis` and `gains`, and
    `absolute/codes`, which is round(64 |x|) - 128 in int8.
    """
    if path.suffix == ".tflite":
        return _write_loudness_litert(path, shape, gains)
    graph = Graph()
    absolute = graph.add("Abs", "waveform")
    loudest = graph.add("ReduceMax", absolute, keepdims=0)
    scores = graph.add("Mul", np.asarray([gains], np.float32), loudest)
    return graph.write(path, shape, {absolute: shape, scores: (1, len(gains))})


def _write_loudness_litert(path: Path, shape: Sequence[int | str], gains: Sequence[float]) -> Path:
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [], [graph]
    graph.tensors, graph.operators = [], []

    def tensor(name: str, shape: Sequence[int | str], value: np.ndarray | None = None) -> int:
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


def write_densenet(
    path: Path, variables: Mapping[str, Any], config: DenseNetConfig, features: FeatureConfig, samples: int
) -> Path:
    """Write a DenseNet with its log-mel features: waveform [1, samples] to logits [1, events]."""
    graph, params, statistics = Graph(), variables["params"], variables["batch_stats"]
    numbers = {kind: itertools.count() for kind in ("BatchNorm", "Conv", "Dense")}

    def new(kind: str) -> tuple[str, Mapping[str, np.ndarray]]:
        name = f"{kind}_{next(numbers[kind])}"
        return name, params[name]

    def norm_relu(x: str) -> str:
        name, weights = new("BatchNorm")
        values = weights["scale"], weights["bias"], statistics[name]["mean"], statistics[name]["var"]
        return graph.add("Relu", graph.add("BatchNormalization", x, *map(np.asarray, values), epsilon=1e-5))

    def conv(x: str, size: int, stride: int = 1) -> str:
        kernel = np.asarray(new("Dense" if size == 1 else "Conv")[1]["kernel"])
        kernel = kernel.reshape(size, size, *kernel.shape[-2:]).transpose(3, 2, 0, 1)
        return graph.add("Conv", x, kernel, strides=[stride] * 2, auto_pad="SAME_UPPER")

    # A convolution whose kernels are the rows of the windowed Fourier transform computes all frames.
    n, f = np.arange(features.win_length), np.arange(features.n_fft // 2 + 1)[:, None]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / features.win_length)
    fourier = np.concatenate([turn(2 * np.pi * f * n / features.n_fft) * hann for turn in (np.cos, np.sin)])
    spectrum = graph.add(
        "Conv",
        graph.add("Reshape", "waveform", np.array([1, 1, samples])),
        fourier[:, None].astype(np.float32),
        strides=[features.hop_length],
    )
    mel = librosa.filters.mel(
        sr=features.sample_rate,
        n_fft=features.n_fft,
        n_mels=features.n_mels,
        fmin=features.fmin,
        fmax=features.fmax,
    )
    energies = graph.add("MatMul", np.tile(mel, 2).astype(np.float32), graph.add("Mul", spectrum, spectrum))
    x = graph.add("Log", graph.add("Add", energies, np.float32(features.floor)))
    norm = variables["norm"]["normalize"]
    x = graph.add("Div", graph.add("Sub", x, norm["mean"][:, None]), norm["std"][:, None])
    x = graph.add("Unsqueeze", graph.add("Transpose", x, perm=[0, 2, 1]), np.array([1]))

    x = graph.add("MaxPool", norm_relu(conv(x, 7, 2)), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for block, layers in enumerate(config.blocks):
        if block:
            x = conv(norm_relu(x), 1)
            x = graph.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        for _ in range(layers):
            x = graph.add("Concat", x, conv(norm_relu(conv(norm_relu(x), 1)), 3), axis=1)
    pooled = graph.add("ReduceMean", norm_relu(x), np.array([2, 3]), keepdims=0)
    _, last = new("Dense")
    logits = graph.add(
        "Add", graph.add("MatMul", pooled, np.asarray(last["kernel"])), np.asarray(last["bias"])
    )
    return graph.write(path, (1, samples), {logits: (1, len(last["bias"]))})
