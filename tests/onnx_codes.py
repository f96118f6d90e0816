"""ONNX models of detectors, run from input codes on, and the reference's codes to compare with."""

import numpy as np
import onnx
import onnxruntime

from qkd_jax.detector import reference
from qkd_jax.detector.codes import GRID

TYPES = {"log_mel": np.float32, "codes": np.float32, "output_codes": np.int32, "attention_codes": np.int32}


def opened(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def info(name, *shape):
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(TYPES.get(name, np.uint8)))
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def giving(model, *inner):
    """`model` with tensors that are within it among its outputs."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(info(name, "steps", "values") for name in inner)
    return model


def from_codes(model, *inner):
    """`giving`, and fed with the codes [frames, mels] instead of a waveform."""
    model = giving(model, *inner)
    before = [node.output[0] for node in model.graph.node].index("codes")
    del model.graph.node[: before + 1]
    model.graph.input[0].CopyFrom(info("codes", "frames", "mels"))
    return model


def clip_codes(detector, model, codes):
    """What the clip form `model` computes of `codes`: outputs, attention, h of each layer, logits."""
    inner = ["output_codes", *(["attention_codes"] if detector.attention else [])]
    hidden = [f"hidden{index}" for index in range(len(detector.lstm))]
    session = opened(from_codes(model, *inner, *hidden))
    _, logits, *found = session.run(None, {"codes": codes.astype(np.float32)})
    half = 2 ** (detector.network.quant.activations - 1)
    h = [each.astype(int) - half for each in found[len(inner) :]]
    return found[0], found[1] if detector.attention else None, h, logits


def stream(detector, model, pieces):
    """What the step form says of each piece, on the grid: outputs, attention, h and c of each layer."""
    session = opened(model)
    first, *state = (item.name for item in session.get_inputs())
    answers = [item.name for item in session.get_outputs()]
    carried, said = {name: np.zeros(detector.network.hidden_size, np.int32) for name in state}, []
    for piece in pieces:
        found = dict(zip(answers, session.run(None, {first: piece} | carried)))
        np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-found["logits"])), atol=1e-6)
        carried = {name: found[f"next_{name}"] for name in state}
        said.append((found["logits"], found.get("attention"), [carried[name] for name in state]))
    outputs, attention, state = zip(*said)
    attention = None if attention[0] is None else np.array(attention) * 2**GRID
    return np.array(outputs) * 2**GRID, attention, np.array(state)


def reference_codes(detector, codes):
    """The same of the reference: outputs, attention, h and c of each layer [steps, 2 · layers, units]."""
    state, outputs, attentions, cells = reference.start(detector), [], [], []
    for frame in codes:
        state, output, attention = reference.advance(detector, state, frame[None])
        if len(output):
            outputs.append(output[0])
            attentions.append(None if attention is None else attention[0])
            cells.append([part for cell in state.cells for part in cell])
    return np.array(outputs), np.array(attentions) if detector.attention else None, np.array(cells)


def assert_same(detector, clip, step, codes):
    """That the forms `clip`, and `step` over a stream, compute of `codes` what the reference does."""
    outputs, attention, cells = reference_codes(detector, codes)
    found_outputs, found_attention, h, logits = clip_codes(detector, clip, codes)
    np.testing.assert_array_equal(found_outputs, outputs)
    np.testing.assert_array_equal(np.array(h), cells[:, ::2].swapaxes(0, 1))
    np.testing.assert_allclose(logits, reference.clip_logits(detector, codes), rtol=1e-6, atol=1e-6)
    frames, hop = detector.network.receptive_field, detector.network.stride
    pieces = np.lib.stride_tricks.sliding_window_view(codes.astype(np.float32), frames, axis=0)
    streamed = stream(detector, from_codes(step), pieces.swapaxes(1, 2)[::hop])
    np.testing.assert_array_equal(streamed[0], outputs)
    np.testing.assert_array_equal(streamed[2], cells)
    if attention is not None:
        np.testing.assert_array_equal(found_attention, attention)
        np.testing.assert_array_equal(streamed[1], attention)
