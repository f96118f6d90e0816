"""Detectors as ONNX models: waveform in, probabilities out, and `reference.py`'s integers in between.

Models use standard operators alone.  The LSTM's products are MatMulInteger; convolutions compute with whole
numbers in float32, which is exact below 2^24 and several times as fast as ConvInteger; the rest is int32.
A model takes a whole clip (`clip_model`), or the samples that one step of the LSTM reads (`step_model`).

Inner tensors that can be compared with the reference's are `log_mel`, `codes`, `output_codes`,
`attention_codes`, and in clip models `hidden<k>` (the codes h of layer k, plus 2^(activations - 1)).
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qkd_jax.audio.mel import mel_edges
from qkd_jax.config import step_samples, to_json
from qkd_jax.detector.codes import (
    CELL_BITS,
    CONV_GUARD_BITS,
    GATE_EXPONENT,
    LOGIT_EXPONENT,
    TABLE_LIMIT,
    ConvCodes,
    LinearCodes,
    LSTMCodes,
    sigmoid_table,
)
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.file import check
from qkd_jax.system.libraries import optional

FORMAT = "qkd_jax ONNX, version 1"

Infos = dict[str, tuple[Any, Sequence[int | str]]]
"""Type and shape of each tensor, by name."""


def clip_model(detector: Detector) -> Any:
    """The onnx.ModelProto that takes a clip: `waveform`, float32 [samples] of full scale 1.

    Its outputs are `probabilities` and `logits`, float32 [events], pooled as by `reference.pooled`.  Raises
    InputError if `detector.file.check` does, or if onnx is not installed.
    """
    check(detector)
    graph = _Graph(detector)
    x, tables = _inputs(graph), _tables(graph)
    for index, layer in enumerate(detector.lstm):
        x = _scan(graph, layer, tables, x, f"hidden{index}")
    logits = graph.cast(_pooled(graph, *_outputs(graph, x)), np.float32, "logits")
    graph.add("Sigmoid", logits, name="probabilities")
    outputs: Infos = dict.fromkeys(("probabilities", "logits"), (np.float32, [len(detector.events)]))
    return graph.model({"waveform": (np.float32, ["samples"])}, outputs, form="clip")


def step_model(detector: Detector) -> Any:
    """The onnx.ModelProto that takes one step: `waveform`, float32 [window], and the state before it.

    A stream is read in windows of `window_samples`, one every `hop_samples`; both are in the metadata.  The
    state of layer k is `h<k>` and `c<k>`, int32 [hidden_size], zeros at the start; `next_h<k>` and
    `next_c<k>` are the state after the step.  Further outputs are the step's `probabilities` and `logits`,
    and with attention the logarithm of its weight, `attention`, all float32 [events].  Raises InputError if
    `detector.file.check` does, or if onnx is not installed.
    """
    check(detector)
    graph, network = _Graph(detector), detector.network
    window, hop = step_samples(detector.features, network)
    before: Infos = {"waveform": (np.float32, [window])}
    after: Infos = dict.fromkeys(("probabilities", "logits"), (np.float32, [len(detector.events)]))

    x, tables, half = _inputs(graph), _tables(graph), np.int32(graph.half)
    x = x._replace(name=graph.add("Squeeze", x.name, np.array([0])))
    for index, layer in enumerate(detector.lstm):
        h = graph.cast(graph.add("Add", f"h{index}", half), np.uint8)
        z_x, w_h = _from_x(graph, layer, x), graph.weights(layer.w_h)
        h, c = _step(graph, layer, w_h, tables, z_x, h, f"c{index}")
        graph.add("Sub", h, half, name=f"next_h{index}")
        graph.add("Identity", c, name=f"next_c{index}")
        before |= dict.fromkeys((f"h{index}", f"c{index}"), (np.int32, [network.hidden_size]))
        after |= dict.fromkeys((f"next_h{index}", f"next_c{index}"), (np.int32, [network.hidden_size]))
        x = _Codes(graph.cast(h, np.uint8), graph.zero)
    logits, attention = _outputs(graph, x)
    graph.add("Sigmoid", graph.cast(logits, np.float32, "logits"), name="probabilities")
    if attention is not None:
        graph.cast(attention, np.float32, "attention")
        after["attention"] = after["logits"]
    samples = {"window_samples": str(window), "hop_samples": str(hop)}
    return graph.model(before, after, form="step", **samples)


def sizes(model: Any) -> dict[str, int]:
    """Bytes of a model's file: `front_end` up to the codes, `weights` with scales and biases, `graph`."""
    names = [node.output[0] for node in model.graph.node]
    front = model.graph.node[: names.index("codes") + 1]
    constants = {item.name: item.ByteSize() for item in model.graph.initializer}
    read = {name for node in front for name in node.input} & constants.keys()
    front_end = sum(node.ByteSize() for node in front) + sum(constants[name] for name in read)
    weights = sum(size for name, size in constants.items() if name.startswith("w"))
    whole = model.ByteSize() + len(checksum(b""))
    return {"front_end": front_end, "weights": weights, "graph": whole - front_end - weights}


def checksum(content: bytes) -> bytes:
    """The bytes to append to `content`: a ModelProto of metadata alone, which protobuf merges with it."""
    return b"r\x4a\n\x06sha256\x12\x40" + hashlib.sha256(content).hexdigest().encode()


class _Codes(NamedTuple):
    """A uint8 tensor, or int8 for some weights, and its zero point."""

    name: str
    zero: np.generic


class _Tables(NamedTuple):
    """int32 tables: `gates`, indexed by z + `offsets` [4 · hidden_size], and `tanh`, by z + TABLE_LIMIT.

    |z| is at most TABLE_LIMIT.  For f, i and o, `gates` holds codes of σ(z) of scale 2^-GATE_EXPONENT.  For
    the candidate it holds, as `tanh` does, σ(2z) - 1/2 in that scale, which is tanh(z) in twice the scale.
    """

    gates: str
    offsets: str
    tanh: str


class _Graph:
    """Nodes in order, and constants, shared with the graph `outer`; methods return names of tensors."""

    def __init__(self, detector: Detector, outer: "_Graph | None" = None):
        self.detector, self.bits = detector, detector.network.quant.activations
        self.half = 1 << (self.bits - 1)
        self.zero = np.uint8(self.half)
        self.onnx = optional("onnx", "ONNX models", "pip install 'qkd_jax[export]'")
        self.nodes: list[Any] = []
        self.constants: dict[Any, Any] = outer.constants if outer else {}
        self.numbers: Iterator[int] = outer.numbers if outer else itertools.count()

    def constant(self, value: Any, kind: str = "k") -> str:
        """A constant, stored once per value; its name begins with `kind`, w for trained values."""
        value = np.asarray(value)
        key = (value.dtype, value.shape, value.tobytes())
        if key not in self.constants:
            name = f"{kind}{len(self.constants)}"
            self.constants[key] = self.onnx.numpy_helper.from_array(value, name)
        return self.constants[key].name

    def add(self, kind: str, *inputs: Any, name: str = "", **attributes: Any) -> str:
        """Add a node with one output; inputs are names or constants."""
        return self.add_all(kind, inputs, [name or f"t{next(self.numbers)}"], **attributes)[0]

    def add_all(
        self, kind: str, inputs: Sequence[Any], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        names = [item if isinstance(item, str) else self.constant(item) for item in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, outputs, **attributes))
        return outputs

    def cast(self, value: str, dtype: Any, name: str = "") -> str:
        return self.add("Cast", value, name=name, to=self.type_of(dtype))

    def small(self, codes: np.ndarray) -> str | None:
        """Codes of up to 4 bits as INT4, to be cast before a product; None if some code needs more bits."""
        if np.abs(codes).max(initial=0) > 7:
            return None
        int4 = self.onnx.helper.tensor_dtype_to_np_dtype(self.onnx.TensorProto.INT4)
        return self.constant(codes.astype(int4), "w")

    def weights(self, codes: np.ndarray) -> _Codes:
        """Codes of weights as MatMulInteger takes them."""
        small = self.small(codes)
        if small is not None:
            return _Codes(self.cast(small, np.int8), np.int8(0))
        # uint8: for uint8 · int8, processors without VNNI add pairs of products in 16 bits, which overflow.
        return _Codes(self.constant((codes.astype(np.int16) + 128).astype(np.uint8), "w"), np.uint8(128))

    def graph(self, inputs: Infos, outputs: Infos, constants: Sequence[Any] = ()) -> Any:
        make = self.onnx.helper.make_tensor_value_info
        infos = (
            [make(name, self.type_of(dtype), shape) for name, (dtype, shape) in of.items()]
            for of in (inputs, outputs)
        )
        return self.onnx.helper.make_graph(self.nodes, "detector", *infos, constants)

    def model(self, inputs: Infos, outputs: Infos, **metadata: str) -> Any:
        helper, detector = self.onnx.helper, self.detector
        model = helper.make_model(
            self.graph(inputs, outputs, list(self.constants.values())),
            opset_imports=[helper.make_opsetid("", 21)],  # the first with INT4
            ir_version=10,
            producer_name="qkd_jax",
        )
        common = {
            "format": FORMAT,
            "events": json.dumps(detector.events),
            "features": to_json(detector.features),
            "clip_seconds": str(detector.clip_seconds),
            "pooling": detector.network.pooling,
            "event_config": to_json(detector.event_config),
        }
        helper.set_model_props(model, common | metadata)
        return model

    def type_of(self, dtype: Any) -> int:
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _inputs(graph: _Graph) -> _Codes:
    """The LSTM's inputs for `waveform`, [steps, inputs]."""
    detector, half = graph.detector, graph.half
    scaled = graph.add("Div", graph.add("Sub", _log_mel(graph), detector.mean), detector.std)
    rounded = graph.add("Round", graph.add("Mul", scaled, np.float32(2.0**detector.input_exponent)))
    codes = graph.add("Clip", rounded, np.float32(-half), np.float32(half - 1), name="codes")
    if not detector.front:
        return _Codes(graph.cast(graph.add("Add", codes, np.float32(half)), np.uint8), graph.zero)
    x = graph.add("Unsqueeze", codes, np.array([0, 1]))
    for index, conv in enumerate(detector.front):
        x = _convolve(graph, conv, graph.cast(x, np.float32), detector.network.conv_stride(index))
    steps = graph.add("Transpose", graph.cast(x, np.uint8), perm=[0, 2, 3, 1])
    return _Codes(graph.add("Reshape", steps, np.array([-1, len(detector.lstm[0].w_x)])), np.uint8(0))


def _log_mel(graph: _Graph) -> str:
    """Log-mel energies float32 [frames, mels], equal to `audio.log_mel.log_mel` up to the last bits."""
    features = graph.detector.features
    # STFT takes frames of n_fft samples; the window is zero beyond the first win_length.
    pads = np.array([0, features.n_fft - features.win_length])
    window = graph.add("Pad", graph.add("HannWindow", np.int64(features.win_length)), pads)
    signal = graph.add("Unsqueeze", graph.add("Pad", "waveform", pads), np.array([0]))
    spectrum = graph.add("STFT", signal, np.int64(features.hop_length), window, onesided=1)
    power = graph.add("ReduceSumSquare", spectrum, np.array([0, 3]), keepdims=0)
    # In float64, since the order of summation may differ between one frame and many: float32 would show it.
    energies = graph.add("MatMul", graph.cast(power, np.float64), _mel_basis(graph))
    logs = graph.add("Log", graph.add("Add", energies, np.float64(features.floor)))
    return graph.cast(logs, np.float32, "log_mel")


def _mel_basis(graph: _Graph) -> str:
    """`audio.mel.mel_basis` in float64, from the edges of the triangles."""
    features = graph.detector.features
    edges, half = graph.constant(mel_edges(features)), features.n_fft // 2
    lower, peak, upper = (
        graph.add("Slice", edges, np.array([start]), np.array([start + features.n_mels]))
        for start in range(3)
    )
    bins = graph.add("Range", np.float64(0), np.float64(half + 1), np.float64(1))
    hertz = graph.add("Mul", bins, np.float64(features.sample_rate / 2 / half))
    frequencies = graph.add("Unsqueeze", hertz, np.array([1]))
    rising = graph.add("Div", graph.add("Sub", frequencies, lower), graph.add("Sub", peak, lower))
    falling = graph.add("Div", graph.add("Sub", upper, frequencies), graph.add("Sub", upper, peak))
    triangles = graph.add("Max", graph.add("Min", rising, falling), np.float64(0))
    return graph.add("Div", graph.add("Mul", triangles, np.float64(2)), graph.add("Sub", upper, lower))


def _convolve(graph: _Graph, conv: ConvCodes, x: str, stride: int) -> str:
    """Codes, from float32 [1, channels, frames, bands] to int32 [1, outputs, steps, bands / 2]."""
    codes = conv.w.transpose(3, 2, 0, 1)
    w = graph.cast(graph.small(codes) or graph.constant(codes, "w"), np.float32)
    # A cast to int32, or a runtime's optimiser may fold the multiplier into the weights.
    acc = graph.cast(graph.add("Conv", x, w, strides=[stride, 2], pads=[0, 1, 0, 1]), np.int32)
    bias = graph.constant(conv.bias[:, None, None], "w")
    shifted = _shifted(graph, _rescaled(graph, acc, conv.multiplier[:, None, None], bias), CONV_GUARD_BITS)
    return graph.add("Clip", shifted, np.int32(0), np.int32((1 << graph.bits) - 1))


def _tables(graph: _Graph) -> _Tables:
    upper = graph.cast(graph.constant(sigmoid_table()[TABLE_LIMIT:].astype(np.int16)), np.int32)
    mirrored = graph.add(
        "Slice", upper, np.array([TABLE_LIMIT]), np.array([0]), np.array([0]), np.array([-1])
    )
    sigmoid = graph.add("Concat", graph.add("Sub", np.int32(1 << GATE_EXPONENT), mirrored), upper, axis=0)
    doubled = graph.add("Range", np.int32(-2 * TABLE_LIMIT), np.int32(2 * TABLE_LIMIT + 1), np.int32(2))
    clipped = graph.add("Clip", doubled, np.int32(-TABLE_LIMIT), np.int32(TABLE_LIMIT))
    of_doubled = graph.add("Gather", sigmoid, graph.add("Add", clipped, np.int32(TABLE_LIMIT)))
    tanh = graph.add("Sub", of_doubled, np.int32(1 << (GATE_EXPONENT - 1)))
    # f, i and o index the first half of `gates`, the candidate the second.
    first = TABLE_LIMIT + (2 * TABLE_LIMIT + 1) * np.array([[0], [0], [1], [0]], np.int32)
    offsets = graph.add("Expand", first, np.array([4, graph.detector.network.hidden_size]))
    gates = graph.add("Concat", sigmoid, tanh, axis=0)
    return _Tables(gates, graph.add("Reshape", offsets, np.array([-1])), tanh)


def _scan(graph: _Graph, layer: LSTMCodes, tables: _Tables, x: _Codes, name: str) -> _Codes:
    """The codes h after each step of x [steps, inputs], as the tensor `name` [steps, hidden_size]."""
    hidden, body = graph.detector.network.hidden_size, _Graph(graph.detector, graph)
    starts = [graph.add("Expand", zero, np.array([hidden])) for zero in (graph.zero, np.int32(0))]
    z_x, w_h = _from_x(graph, layer, x), graph.weights(layer.w_h)
    each, c = _step(body, layer, w_h, tables, "z_x", "h", "c")
    h = body.cast(each, np.uint8)
    codes, numbers = (np.uint8, [hidden]), (np.int32, [hidden])
    before: Infos = {"h": codes, "c": numbers, "z_x": (np.int32, [4 * hidden])}
    inside = body.graph(before, {h: codes, c: numbers, each: numbers})
    ends = [f"{name}_{part}" for part in ("h", "c", "each")]
    graph.add_all("Scan", [*starts, z_x], ends, body=inside, num_scan_inputs=1)
    return _Codes(graph.cast(ends[-1], np.uint8, name), graph.zero)


def _from_x(graph: _Graph, layer: LSTMCodes, x: _Codes) -> str:
    """The share of x in z, with the bias."""
    w, bias = graph.weights(layer.w_x), graph.constant(layer.bias, "w")
    return _product(graph, x, w, layer.multiplier_x, bias)


def _step(
    graph: _Graph, layer: LSTMCodes, w_h: _Codes, tables: _Tables, z_x: str, h: str, c: str
) -> tuple[str, str]:
    """The next h, with `graph.half` added, and c, both int32 [hidden_size]; the h before is as `_Codes`."""
    z = _product(graph, _Codes(h, graph.zero), w_h, layer.multiplier_h, z_x)
    place = graph.add(
        "Add", graph.add("Clip", z, np.int32(-TABLE_LIMIT), np.int32(TABLE_LIMIT)), tables.offsets
    )
    # Gather would copy entry by entry, and take as long as everything else together.
    gates = graph.add("GatherElements", tables.gates, place)
    names = [f"t{next(graph.numbers)}" for _ in range(4)]
    f, i, candidate, o = graph.add_all("Split", [gates], names, num_outputs=4)

    # ONNX has no arithmetic shift, and Div rounds towards 0: so an offset first makes the products positive.
    # |f · c| < 2^30 and |i · candidate| < 2^29, hence the offsets after the shifts.
    remembered = _shifted(graph, graph.add("Mul", f, c), GATE_EXPONENT, 1 << (30 - GATE_EXPONENT))
    added = _shifted(
        graph,
        graph.add("Mul", i, candidate),
        2 * GATE_EXPONENT - 1 - layer.cell_exponent,
        1 << layer.cell_exponent,
    )
    offset, end = (1 << (30 - GATE_EXPONENT)) + (1 << layer.cell_exponent), 1 << (CELL_BITS - 1)
    total = graph.add("Add", remembered, added)
    clipped = graph.add("Clip", total, np.int32(offset - end), np.int32(offset + end - 1))
    c = graph.add("Sub", clipped, np.int32(offset))

    finer = layer.cell_exponent - LOGIT_EXPONENT
    if finer > 0:
        place = _shifted(graph, c, finer, TABLE_LIMIT)
    else:
        place = graph.add("Add", graph.add("Mul", c, np.int32(1 << -finer)), np.int32(TABLE_LIMIT))
    place = graph.add("Clip", place, np.int32(0), np.int32(2 * TABLE_LIMIT))
    tanh = graph.add("GatherElements", tables.tanh, place)
    shifted = _shifted(graph, graph.add("Mul", o, tanh), 2 * GATE_EXPONENT - graph.bits, graph.half)
    return graph.add("Clip", shifted, np.int32(0), np.int32(2 * graph.half - 1)), c


def _outputs(graph: _Graph, x: _Codes) -> tuple[str, str | None]:
    """Logits and attention, float64 [..., events], of x [..., hidden_size]."""

    def logits(linear: LinearCodes, name: str) -> str:
        w, bias = graph.weights(linear.w), graph.constant(linear.bias, "w")
        codes = _product(graph, x, w, linear.multiplier, bias, name)
        return graph.add("Mul", graph.cast(codes, np.float64), np.float64(2.0**-LOGIT_EXPONENT))

    output, attention = graph.detector.output, graph.detector.attention
    return logits(output, "output_codes"), attention and logits(attention, "attention_codes")


def _pooled(graph: _Graph, logits: str, attention: str | None) -> str:
    """Logits of the clip [events] from those of its steps [steps, events]."""
    steps = np.array([0])
    if attention is not None:
        weighted = graph.add("Mul", graph.add("Softmax", attention, axis=0), logits)
        return graph.add("ReduceSum", weighted, steps, keepdims=0)
    if graph.detector.network.pooling == "mean":
        return graph.add("ReduceMean", logits, steps, keepdims=0)
    return graph.add("Gather", logits, np.int64(-1))


def _product(graph: _Graph, x: _Codes, w: _Codes, multiplier: np.ndarray, plus: str, name: str = "") -> str:
    acc = graph.add("MatMulInteger", x.name, w.name, x.zero, w.zero)
    return _rescaled(graph, acc, multiplier, plus, name)


def _rescaled(graph: _Graph, acc: str, multiplier: np.ndarray, plus: str, name: str = "") -> str:
    """rescaled(acc) + plus, int32."""
    scaled = graph.add("Mul", graph.cast(acc, np.float32), graph.constant(multiplier, "w"))
    return graph.add("Add", graph.cast(graph.add("Round", scaled), np.int32), plus, name=name)


def _shifted(graph: _Graph, value: str, by: int, plus: int = 0) -> str:
    """shift(value, by) + plus if that is positive; otherwise 0 or less, since Div rounds towards 0."""
    offset = graph.add("Add", value, np.int32((plus << by) + (1 << (by - 1))))
    return graph.add("Div", offset, np.int32(1 << by))
