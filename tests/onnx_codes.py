"""ONNX models of detectors, run from the input codes on, and the reference's codes to compare."""

import numpy as np
import onnx
import onnxruntime
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.detector import reference
from qkd_jax.detector.codes import LOGIT_EXPONENT

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
    """`model` with inner tensors as further outputs."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(info(name, "steps", "values") for name in inner)
    return model


def from_codes(model, *inner):
    """`giving`, with the codes [frames, mels] as input instead of a waveform."""
    model = giving(model, *inner)
    before = [node.output[0] for node in model.graph.node].index("codes")
    del model.graph.node[: before + 1]
    model.graph.input[0].CopyFrom(info("codes", "frames", "mels"))
    return model


def clip_codes(detector, model, codes):
    """Outputs, attention, h of each layer, and logits that the clip form `model` computes from `codes`."""
    inner = ["output_codes", *(["attention_codes"] if detector.attention else [])]
    hidden = [f"hidden{index}" for index in range(len(detector.lstm))]
    session = opened(from_codes(model, *inner, *hidden))
    _, logits, *tensors = session.run(None, {"codes": codes.astype(np.float32)})
    half = 2 ** (detector.network.quant.activations - 1)
    h = [each.astype(int) - half for each in tensors[len(inner) :]]
    return tensors[0], tensors[1] if detector.attention else None, h, logits


def stream(detector, model, pieces):
    """Codes of outputs and attention, and h and c of each layer, by the step form for each piece."""
    session = opened(model)
    first, *names = (item.name for item in session.get_inputs())
    outputs = [item.name for item in session.get_outputs()]
    state, steps = {name: np.zeros(detector.network.hidden_size, np.int32) for name in names}, []
    for piece in pieces:
        step = dict(zip(outputs, session.run(None, {first: piece} | state)))
        assert_allclose(step["probabilities"], 1 / (1 + np.exp(-step["logits"])), atol=1e-6)
        state = {name: step[f"next_{name}"] for name in names}
        steps.append((step["logits"], step.get("attention"), [state[name] for name in names]))
    logits, attention, states = zip(*steps)
    attention = None if attention[0] is None else np.array(attention) * 2**LOGIT_EXPONENT
    return np.array(logits) * 2**LOGIT_EXPONENT, attention, np.array(states)


def reference_codes(detector, codes):
    """The same by the reference; h and c of each layer are [steps, 2 · layers, hidden_size]."""
    state, outputs, attentions, cells = reference.start(detector), [], [], []
    for frame in codes:
        state, output, attention = reference.advance(detector, state, frame[None])
        if len(output):
            outputs.append(output[0])
            attentions.append(None if attention is None else attention[0])
            cells.append([part for cell in state.cells for part in cell])
    return np.array(outputs), np.array(attentions) if detector.attention else None, np.array(cells)


def assert_same(detector, clip, step, codes):
    """Assert that the models `clip`, and `step` over a stream, compute the reference's codes from `codes`."""
    outputs, attention, cells = reference_codes(detector, codes)
    clip_outputs, clip_attention, h, logits = clip_codes(detector, clip, codes)
    assert_array_equal(clip_outputs, outputs)
    assert_array_equal(np.array(h), cells[:, ::2].swapaxes(0, 1))
    assert_allclose(logits, reference.clip_logits(detector, codes), rtol=1e-6, atol=1e-6)
    frames, hop = detector.network.receptive_field, detector.network.stride
    pieces = np.lib.stride_tricks.sliding_window_view(codes.astype(np.float32), frames, axis=0)
    streamed = stream(detector, from_codes(step), pieces.swapaxes(1, 2)[::hop])
    assert_array_equal(streamed[0], outputs)
    assert_array_equal(streamed[2], cells)
    if attention is not None:
        assert_array_equal(clip_attention, attention)
        assert_array_equal(streamed[1], attention)
