"""A detector on one core, at batch 1: a clip at a time, and a frame at a time."""

import ctypes
import importlib.util
import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# One core, also where there is a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import EVENTS
from benchmarks.speed.measure import Call, Row, agree, in_turns
from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector import reference
from qkd_jax.detector.codes import LOGIT_EXPONENT
from qkd_jax.detector.detector import Detector
from qkd_jax.models.build import build_model
from qkd_jax.models.common import with_norm
from qkd_jax.models.lstm_integer import calibrate, to_detector
from qkd_jax.nn.lstm import lstm_scan
from qkd_jax.runtimes import litert
from qkd_jax.runtimes.c_header import to_c
from qkd_jax.runtimes.jax import to_jax
from qkd_jax.runtimes.onnx_graph import clip_model, step_model

FRAMES, MELS, HIDDEN_SIZE, REPEAT = 998, 64, 256, 500
ONNX_GATES, TORCH_GATES = (1, 3, 0, 2), (1, 0, 2, 3)
"""Their gates as positions in f, i, c~, o: ONNX has i, o, f, c, torch i, f, g, o."""
NUMPY, JAX, ONNX, LITERT = "NumPy", "JAX", "ONNX Runtime", "LiteRT"
PORTABLE, C = "C, -O3", "C, -O3 -march=native"
ORT, ORT_INT8, TORCH = "ONNX Runtime's LSTM", "ONNX Runtime's DynamicQuantizeLSTM", "torch's LSTM"
SAME, NEAR, ROUGH = 1e-4, 0.1, 0.5
"""Largest differences relative to the largest logit: of floats, of LiteRT's rounding, of quantization."""
WITHIN = dict.fromkeys((NUMPY, JAX, ONNX, PORTABLE, C), 0.0) | {LITERT: NEAR}
WITHIN |= {ORT: SAME, TORCH: SAME, ORT_INT8: ROUGH}
GOALS, FRAME_GOAL = {(LITERT, 4): 2.0, (C, 8): 1 / 0.3, (C, 4): 1 / 0.3}, 6e-6
"""A clip: this many times as fast as ONNX Runtime's LSTM; a frame: seconds."""
RUN = """
#include "detector.h"
static qkd_state stream;
void start(void) { qkd_reset(&stream); }
void step(const float *log_mel, float *logits) { qkd_log_mel(&stream, log_mel); qkd_clip(&stream, logits); }
void clip(const float *log_mel, int frames, float *logits)
{
    qkd_state state;
    int frame;
    qkd_reset(&state);
    for (frame = 0; frame < frames; frame++)
        qkd_log_mel(&state, log_mel + (size_t)QKD_MELS * frame);
    qkd_clip(&state, logits);
}
"""
GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
lstm (float[frames, 1, %(mels)d] x, float[1, 1, %(H)d] h, float[1, 1, %(H)d] c)
=> (float[1, %(events)d] logits, float[1, 1, %(H)d] next_h, float[1, 1, %(H)d] next_c) {
    , next_h, next_c = LSTM <hidden_size = %(H)d> (x, w, r, b, , h, c)
    last = Squeeze (next_h, first)
    sums = MatMul (last, out)
    logits = Add (sums, bias)
}
"""


class Way(NamedTuple):
    """A way to run a detector.

    `clip` maps x, float32 [frames, mels], to logits [events]; `step` maps a state, of which `start()` is the
    first, and a frame, float32 [1, mels], to the next state and logits [events].
    """

    clip: Callable[[np.ndarray], np.ndarray]
    start: Callable[[], Any] = lambda: None
    step: Callable[[Any, np.ndarray], tuple[Any, np.ndarray]] | None = None


class Weights(NamedTuple):
    """A float LSTM and its linear layer.

    With H the hidden size, `w` is [H + mels, 4H], rows of [h, x] and columns of the gates f, i, c~, o; `b`
    [4H], `out` [H, events], `bias` [events].
    """

    w: np.ndarray
    b: np.ndarray
    out: np.ndarray
    bias: np.ndarray

    def of(self, gates: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of x [4H, mels], of h [4H, H], and biases [4H], in the order of `gates`."""
        w, b = (np.split(each, 4, axis=-1) for each in (self.w, self.b))
        rows, hidden_size = np.concatenate([w[gate].T for gate in gates]), len(self.out)
        return rows[:, hidden_size:], rows[:, :hidden_size], np.concatenate([b[gate] for gate in gates])


def untrained(network: LSTMConfig, x: np.ndarray, *, normed: bool = False) -> tuple[Detector, Any]:
    """A detector calibrated on `x`, float32 [frames, mels], maybe `normed` by it, and its float weights."""
    variables = dict(jax.jit(build_model(network, len(EVENTS)).init)(jax.random.key(0), x[None]))
    if normed:
        variables = with_norm(variables, x.mean(axis=0), x.std(axis=0))
    variables |= {"exponents": calibrate(network, variables, [x[None]])}
    front = FeatureConfig(n_mels=x.shape[1])
    detector = to_detector(network, variables, features=front, events=EVENTS, clip_seconds=10.0)
    return detector, variables["params"]


def features(frames: int) -> np.ndarray:
    """Noise whose level changes every 20 frames, with mean 0, float32 [frames, mels]."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 1, (-(-frames // 20), 1)).repeat(20, axis=0)[:frames]
    return (level + rng.normal(0, 0.5, (frames, MELS))).astype(np.float32)


def weights_of(params: Any) -> Weights:
    """The weights among the parameters of an LSTM of one layer."""
    (lstm,), output = params["lstm"], params["output"]
    return Weights(*(np.asarray(each) for each in (lstm["w"], lstm["b"], output["w"], output["b"])))


def by_float(weights: Weights, x: np.ndarray) -> np.ndarray:
    """The logits of our float LSTM."""
    layer = {"w": jnp.asarray(weights.w), "b": jnp.asarray(weights.b)}
    hs, _ = lstm_scan((layer,), jnp.asarray(x))
    return np.asarray(hs[-1] @ weights.out + weights.bias)


def in_numpy(detector: Detector) -> Way:
    """The reference."""

    def step(state: Any, frame: np.ndarray) -> tuple[Any, np.ndarray]:
        state, outputs, _ = reference.advance(detector, state, reference.input_codes(detector, frame))
        return state, outputs[-1] / 2.0**LOGIT_EXPONENT

    def clip(x: np.ndarray) -> np.ndarray:
        return reference.clip_logits(detector, reference.input_codes(detector, x))

    return Way(clip, lambda: reference.start(detector), step)


def in_jax(detector: Detector) -> Way:
    """`to_jax`, jitted."""
    logits = jax.jit(to_jax(detector))
    return Way(lambda x: np.asarray(logits(x[None])[0]))


def in_c(detector: Detector, *flags: str) -> Way:
    """The header, compiled with `flags`."""
    command = [*os.environ.get("CC", "cc").split(), "-std=c99", *flags, "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "detector.h").write_text(to_c(detector))
        Path(folder, "run.c").write_text(RUN)
        subprocess.run([*command, "-o", "run.so", "run.c", "-lm"], cwd=folder, check=True)
        library = ctypes.CDLL(str(Path(folder, "run.so")))
    library.clip.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    library.step.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    logits, taken = np.zeros(len(detector.events), np.float32), np.zeros((1, MELS), np.float32)
    into, given = logits.ctypes.data, taken.ctypes.data

    def clip(x: np.ndarray) -> np.ndarray:
        library.clip(x.ctypes.data, len(x), into)
        return logits.copy()

    def step(state: None, frame: np.ndarray) -> tuple[None, np.ndarray]:
        taken[:] = frame  # faster than asking for the frame's address
        library.step(given, into)
        return None, logits.copy()

    return Way(clip, library.start, step)


def in_litert(detector: Detector) -> Way:
    """The .tflite, which is a model of one step."""
    runner = litert.open_model(litert.to_litert(detector), "LiteRT")

    def step(state: Any, frame: np.ndarray) -> tuple[Any, np.ndarray]:
        state, logits, _ = runner.step(state, frame)
        return state, logits

    return Way(lambda x: runner.run(x)[0][-1], lambda: runner.start, step)


def in_onnx(detector: Detector) -> Way:
    """The two integer .onnx models without their front ends."""
    clips, steps = (session(without_front_end(make(detector))) for make in (clip_model, step_model))
    zeros = np.zeros(detector.network.hidden_size, np.int32)

    def step(state: Any, frame: np.ndarray) -> tuple[Any, np.ndarray]:
        feeds = {"log_mel": frame, "h0": state[0], "c0": state[1]}
        logits, *state = steps.run(["logits", "next_h0", "next_c0"], feeds)
        return state, logits

    return Way(lambda x: clips.run(["logits"], {"log_mel": x})[0], lambda: (zeros, zeros), step)


def without_front_end(model: Any) -> bytes:
    """`model` from its features on: the input `log_mel`, float32 [frames, mels], replaces `waveform`."""
    from onnx import TensorProto, helper

    graph = model.graph
    after = next(place for place, node in enumerate(graph.node) if "log_mel" in node.output) + 1
    del graph.node[:after]
    waveform = next(place for place, each in enumerate(graph.input) if each.name == "waveform")
    log_mel = helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["frames", MELS])
    graph.input[waveform].CopyFrom(log_mel)
    return model.SerializeToString()


def session(content: bytes) -> Any:
    """The onnxruntime.InferenceSession of a model, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def onnx_lstm(weights: Weights) -> bytes:
    """The operator LSTM and a linear layer, from x [frames, 1, mels] and h, c [1, 1, H] to `logits` …"""
    from onnx import numpy_helper, parser

    (w, r, b), (hidden_size, events) = weights.of(ONNX_GATES), weights.out.shape
    named = {"w": w[None], "r": r[None], "b": np.concatenate([b, np.zeros_like(b)])[None]}
    named |= {"out": weights.out, "bias": weights.bias, "first": np.array([0])}
    model = parser.parse_model(GRAPH % {"mels": w.shape[1], "H": hidden_size, "events": events})
    constants = [numpy_helper.from_array(np.ascontiguousarray(each), name) for name, each in named.items()]
    model.graph.initializer.extend(constants)
    return model.SerializeToString()


def quantized(content: bytes) -> bytes:
    """A model as ONNX Runtime quantizes it: its LSTM becomes DynamicQuantizeLSTM."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "quantized.onnx")
        before.write_bytes(content)
        quantize_dynamic(before, after, op_types_to_quantize=["LSTM"], weight_type=QuantType.QInt8)
        return after.read_bytes()


def in_onnx_lstm(content: bytes, hidden_size: int) -> Way:
    """A model of `onnx_lstm`, or `quantized` from one."""
    run, zeros = session(content).run, np.zeros((1, 1, hidden_size), np.float32)

    def step(state: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
        logits, *state = run(None, {"x": x[:, None], "h": state[0], "c": state[1]})
        return state, logits[0]

    return Way(lambda x: step((zeros, zeros), x)[1], lambda: (zeros, zeros), step)


def in_torch(weights: Weights) -> Way:
    """`torch.nn.LSTM` for clips, and for frames the faster `LSTMCell`, both with a `Linear`."""
    import torch

    torch.set_num_threads(1)
    w, r, b = (torch.tensor(np.ascontiguousarray(each)) for each in weights.of(TORCH_GATES))
    hidden_size = len(weights.out)
    lstm, cell = torch.nn.LSTM(w.shape[1], hidden_size), torch.nn.LSTMCell(w.shape[1], hidden_size)
    linear = torch.nn.Linear(hidden_size, len(weights.bias))
    named = {"weight_ih": w, "weight_hh": r, "bias_ih": b, "bias_hh": torch.zeros_like(b)}
    cell.load_state_dict(named)
    lstm.load_state_dict({f"{name}_l0": value for name, value in named.items()})
    linear.load_state_dict({"weight": torch.tensor(weights.out.T.copy()), "bias": torch.tensor(weights.bias)})

    @torch.inference_mode()
    def clip(x: np.ndarray) -> np.ndarray:
        return linear(lstm(torch.from_numpy(x)[:, None])[1][0])[0, 0].numpy()

    @torch.inference_mode()
    def step(state: Any, frame: np.ndarray) -> tuple[Any, np.ndarray]:
        state = cell(torch.from_numpy(frame), state)
        return state, linear(state[0])[0].numpy()

    return Way(clip, lambda: tuple(torch.zeros(2, 1, hidden_size)), step)


def by_steps(way: Way, x: np.ndarray) -> np.ndarray:
    """The logits after all frames of `x`, one frame per call."""
    assert way.step
    state = way.start()
    for frame in np.split(x, len(x)):
        state, logits = way.step(state, frame)
    return logits


def ours(detector: Detector) -> dict[str, Way]:
    """Each available way to run `detector`, the reference first."""
    ways = {NUMPY: in_numpy(detector), JAX: in_jax(detector), PORTABLE: in_c(detector, "-O3")}
    ways[C] = in_c(detector, "-O3", "-march=native")
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        ways[ONNX] = in_onnx(detector)
    if importlib.util.find_spec("litert_converter"):
        ways[LITERT] = in_litert(detector)
    return ways


def peers(weights: Weights) -> dict[str, Way]:
    """Each available way to run the float LSTM, and the one that ONNX Runtime quantizes."""
    ways, hidden_size = {}, len(weights.out)
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        model = onnx_lstm(weights)
        ways = {ORT: in_onnx_lstm(model, hidden_size), ORT_INT8: in_onnx_lstm(quantized(model), hidden_size)}
    if importlib.util.find_spec("torch"):
        ways[TORCH] = in_torch(weights)
    return ways


def check(name: str, way: Way, x: np.ndarray, expected: np.ndarray, within: float) -> None:
    """Raise InputError unless `way` gives the logits `expected` for x, as a clip and frame by frame."""
    agree(name, expected, way.clip(x), within)
    if way.step:
        agree(f"{name}, by frames", expected, by_steps(way, x), within)


def stepping(way: Way, x: np.ndarray) -> Call:
    """One frame of x per call."""
    assert way.step
    state, frames, step = way.start(), itertools.cycle(np.split(x, len(x))), way.step

    def call() -> None:
        nonlocal state
        state, _ = step(state, next(frames))

    return call


def rows(
    rounds: int, frames: int = FRAMES, hidden_size: int = HIDDEN_SIZE, repeat: int = REPEAT
) -> Iterator[Row]:
    """Each of ours beside ONNX Runtime's float LSTM, and C at 8 bits beside the other peers."""
    x, own = features(frames), {}
    for bits in (8, 4):
        detector, params = untrained(LSTMConfig(hidden_size=hidden_size, quant=QuantConfig.integer(bits)), x)
        for name, way in ours(detector).items():
            own[name, bits] = way
            check(f"{name}, {bits} bits", way, x, own[NUMPY, bits].clip(x), WITHIN[name])
    weights = weights_of(params)
    others, expected = peers(weights), by_float(weights, x)
    for name, way in others.items():
        check(name, way, x, expected, WITHIN[name])

    pairs = [(key, ORT) for key in own if ORT in others] + [((C, 8), name) for name in others if name != ORT]
    ways: dict[Any, Way] = {**own, **others}
    clips = in_turns({key: partial(way.clip, x) for key, way in ways.items()}, rounds)
    steps = in_turns({key: stepping(way, x) for key, way in ways.items() if way.step}, rounds, repeat)
    for what, seconds in ((f"{frames} frames", clips), ("a frame", steps)):
        for key, peer in ((key, peer) for key, peer in pairs if key in seconds):
            goal = key in GOALS and peer == ORT
            yield Row(
                what=f"{what}, {key[1]} bits",
                ours=key[0],
                peer=peer,
                seconds=seconds[key],
                peer_seconds=seconds[peer],
                off=agree(peer, own[key].clip(x), others[peer].clip(x), ROUGH),
                at_least=GOALS[key] if goal and seconds is clips else None,
                at_most=FRAME_GOAL if goal and seconds is steps else None,
            )
