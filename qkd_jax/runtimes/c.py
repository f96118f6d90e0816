"""C: the header of a detector, compiled and run on this machine."""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qkd_jax.config import from_json, step_samples
from qkd_jax.detector.codes import LOGIT_EXPONENT
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import LSTMState, Runtime, in_numpy
from qkd_jax.errors import InputError
from qkd_jax.runtimes.c_header import Description, checksum_line, to_c
from qkd_jax.runtimes.common import Exported, read_exported
from qkd_jax.system.files import whole_file

_RUNNER = """
#include "detector.h"

int runCodes(const int8_t *codes, int frames, int32_t *outputs, int32_t *attention)
{
    qkd_state state;
    int frame, steps = 0;
    qkd_reset(&state);
    for (frame = 0; frame < frames; frame++)
        if (qkd_codes(&state, codes + (size_t)QKD_MELS * frame)) {
            memcpy(outputs + QKD_EVENTS * steps, state.output, sizeof state.output);
            memcpy(attention + QKD_EVENTS * steps, state.ATTENTION, sizeof state.ATTENTION);
            steps++;
        }
    return steps;
}

int runClip(const float *samples, int frames, float *logits)
{
    qkd_state state;
    int frame;
    qkd_reset(&state);
    for (frame = 0; frame < frames; frame++)
        qkd_frame(&state, samples + (size_t)QKD_HOP * frame);
    return qkd_clip(&state, logits);
}

#define LOAD(array) for (i = 0; i < (int)(sizeof array / sizeof *array); i++) array[i] = *at++;
#define STORE(array) for (i = 0; i < (int)(sizeof array / sizeof *array); i++) *at++ = array[i];

void runSteps(const float *samples, int frames, int32_t *lstm, int32_t *outputs)
{
    qkd_state state;
    int32_t *at = lstm;
    int frame, i;
    qkd_reset(&state);
    EACH_STATE(LOAD)
    for (frame = 0; frame < frames; frame++)
        if (qkd_frame(&state, samples + (size_t)QKD_HOP * frame)) {
            memcpy(outputs, state.output, sizeof state.output);
            outputs += QKD_EVENTS;
        }
    at = lstm;
    EACH_STATE(STORE)
}
"""
"""The functions that `Runner` calls, for a header whose names begin with qkd.

Names in a header have no capitals, so these can't clash.  Without attention, ATTENTION is `output`.
EACH_STATE applies a macro to h and c of each layer.
"""


def write(detector: Detector, path: Path, provenance: Mapping[str, str] = {}, *, name: str = "qkd") -> str:
    """Write `detector` as a C header in which every name begins with `name`."""
    header = to_c(detector, name=name)
    with whole_file(path) as file:
        file.write(header.encode())
    [(flash, ram)] = re.findall(r"Flash: (\d+) bytes.*RAM: (\d+) bytes", header)
    return f"text; flash {int(flash):,}, RAM {int(ram):,}"


def open_clip(path: Path) -> Exported:
    """Compile the header at `path` as a function of whole clips."""
    runner = load(path)
    about = runner.description
    return Exported(about.events, about.features, about.clip_seconds, runner.clip_logits)


def open_stream(detector: Detector) -> Runtime:
    """`detector` on a stream, by its compiled header."""
    runner = compile_c(to_c(detector).encode(), "C")
    window, hop = step_samples(detector.features, detector.network)

    def advance(lstm: LSTMState, samples: np.ndarray) -> tuple[LSTMState, np.ndarray]:
        lstm, outputs = runner.steps(lstm, samples, (len(samples) - window) // hop + 1)
        return lstm, (outputs / 2.0**LOGIT_EXPONENT).astype(np.float32)

    return Runtime(detector, in_numpy(detector).start, advance)


class Runner(NamedTuple):
    """A compiled header; any thread may use it."""

    description: Description
    library: ctypes.CDLL

    def advance(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The output layers' codes at each step, for `codes` (input codes [frames, mels]) from the start.

        The logits' and the attention's, int32 [steps, events], None without attention, as
        `reference.advance`.
        """
        codes = np.ascontiguousarray(codes, np.int8)
        outputs, attention = np.zeros((2, len(codes), len(self.description.events)), np.int32)
        steps = self.library.runCodes(_pointer(codes), len(codes), _pointer(outputs), _pointer(attention))
        return outputs[:steps], attention[:steps] if self.description.pooling == "attention" else None

    def steps(self, lstm: LSTMState, waveform: np.ndarray, steps: int) -> tuple[LSTMState, np.ndarray]:
        """The LSTM's state after `steps` steps, and the output layer's codes, int32 [steps, events].

        `lstm` is the state before, int32 [hidden_size] each; `waveform` exactly the samples that the steps
        read.
        """
        waveform = np.ascontiguousarray(waveform, np.float32)
        after = np.array(lstm, np.int32)
        outputs = np.zeros((steps, len(self.description.events)), np.int32)
        frames = self.description.features.frames(len(waveform))
        self.library.runSteps(_pointer(waveform), frames, _pointer(after), _pointer(outputs))
        return tuple(after), outputs

    def clip_logits(self, waveform: np.ndarray) -> np.ndarray:
        """Logits float32 [events] of a clip, `waveform` float32 [samples] of full scale 1.

        Raises InputError if it is too short for a step.
        """
        waveform = np.ascontiguousarray(waveform, np.float32)
        frames = self.description.features.frames(len(waveform))
        logits = np.zeros(len(self.description.events), np.float32)
        if not self.library.runClip(_pointer(waveform), frames, _pointer(logits)):
            raise InputError(f"waveform: expected enough for one step, got {len(waveform)} samples")
        return logits


def load(path: Path) -> Runner:
    """Compile the header in the file at `path`; raises InputError as `compile_c`, or if it can't be read."""
    return compile_c(read_exported(path, "an exported C header"), path)


def compile_c(header: bytes, where: object) -> Runner:
    """Compile a `header` that `to_c` made, for this machine, with cc or the environment's CC.

    Raises InputError, which names `where`, if there is no compiler, if it fails, or if the header is damaged.
    """
    first, _, rest = header.partition(b"\n")
    if first + b"\n" != checksum_line(rest).encode():
        raise InputError(f"{where}: expected a C header as exported, found changed or other content")
    line = rest.partition(b"\n")[0].decode(errors="replace").removeprefix("// ")
    description = from_json(Description, line, str(where))
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        raise InputError(
            f"{where}: needs a C compiler: expected {compiler[0]} (or the compiler in CC), found none"
        )
    source = _RUNNER.replace("qkd", description.name).replace("QKD", description.name.upper())
    attention = "attention" if description.pooling == "attention" else "output"
    states = [f"DO(state.lstm_{layer}_{part})" for layer in range(1, description.layers + 1) for part in "hc"]
    macros = f"#define ATTENTION {attention}\n#define EACH_STATE(DO) {' '.join(states)}\n"
    flags = ["-std=c99", "-O3", "-shared", "-fPIC", "-o", "run.so", "run.c", "-lm"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "detector.h").write_bytes(rest)
        Path(folder, "run.c").write_text(macros + source, encoding="utf-8")
        # Not every compiler supports -march=native.
        for command in ([*compiler, "-march=native", *flags], [*compiler, *flags]):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode == 0:
                return Runner(description, ctypes.CDLL(str(Path(folder, "run.so"))))
    lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"status {done.returncode}"]
    raise InputError(f"{where}: {compiler[0]} failed: {lines[0]}")


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)
