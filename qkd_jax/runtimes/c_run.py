"""What compiles a detector's C header for this machine, and runs it."""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qkd_jax.config import from_json
from qkd_jax.errors import InputError
from qkd_jax.runtimes.c import Description, checksum_line

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

#define TAKE(cells) for (i = 0; i < (int)(sizeof cells / sizeof *cells); i++) cells[i] = *at++;
#define GIVE(cells) for (i = 0; i < (int)(sizeof cells / sizeof *cells); i++) *at++ = cells[i];

void runSteps(const float *samples, int frames, int32_t *cells, int32_t *outputs)
{
    qkd_state state;
    int32_t *at = cells;
    int frame, i;
    qkd_reset(&state);
    EACH_CELL(TAKE)
    for (frame = 0; frame < frames; frame++)
        if (qkd_frame(&state, samples + (size_t)QKD_HOP * frame)) {
            memcpy(outputs, state.output, sizeof state.output);
            outputs += QKD_EVENTS;
        }
    at = cells;
    EACH_CELL(GIVE)
}
"""
"""What `Runner` calls of a header whose names begin with qkd, none of which has a capital in it.

Without attention, ATTENTION is `output`.  EACH_CELL does something to h and c of each layer.
"""


class Runner(NamedTuple):
    """A header that was compiled; for any thread."""

    description: Description
    library: ctypes.CDLL

    def advance(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """What the output layers say of `codes` (input codes [frames, mels]) at each step, on the grid.

        int32 [steps, events], those of the attention None without one: as `reference.advance` from its start.
        """
        codes = np.ascontiguousarray(codes, np.int8)
        outputs, attention = np.zeros((2, len(codes), len(self.description.events)), np.int32)
        steps = self.library.runCodes(_pointer(codes), len(codes), _pointer(outputs), _pointer(attention))
        return outputs[:steps], attention[:steps] if self.description.pooling == "attention" else None

    def steps(
        self, cells: tuple[np.ndarray, ...], waveform: np.ndarray, steps: int
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """From h and c of each layer in turn, int32 [units] each, and just the samples that `steps` steps
        read, float32, to the cells after them and what the output layer says, int32 [steps, events].
        """
        waveform = np.ascontiguousarray(waveform, np.float32)
        after = np.array(cells, np.int32)
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


def compile_c(path: Path) -> Runner:
    """The header at `path`, which `to_c` made, compiled for this machine.

    The compiler is cc, or what the environment's CC says.  Raises InputError if there is none, if it fails,
    or if the header can't be read or is not what was made.
    """
    try:
        first, _, rest = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise InputError(f"{path}: expected an exported C header: {error.strerror or error}") from None
    if first + b"\n" != checksum_line(rest).encode():
        raise InputError(f"{path}: expected a C header as exported, found a changed or another one")
    line = rest.partition(b"\n")[0].decode(errors="replace").removeprefix("// ")
    description = from_json(Description, line, str(path))
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        raise InputError(f"{path}: needs a C compiler: expected {compiler[0]} (or what CC names), found none")
    source = _RUNNER.replace("qkd", description.name).replace("QKD", description.name.upper())
    attention = "attention" if description.pooling == "attention" else "output"
    cells = [f"DO(state.lstm_{layer}_{cell})" for layer in range(1, description.layers + 1) for cell in "hc"]
    macros = f"#define ATTENTION {attention}\n#define EACH_CELL(DO) {' '.join(cells)}\n"
    flags = ["-std=c99", "-O3", "-shared", "-fPIC", "-o", "run.so", "run.c", "-lm"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "detector.h").write_bytes(rest)
        Path(folder, "run.c").write_text(macros + source)
        # Not every compiler knows what machine it is on.
        for command in ([*compiler, "-march=native", *flags], [*compiler, *flags]):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode == 0:
                return Runner(description, ctypes.CDLL(str(Path(folder, "run.so"))))
    lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"status {done.returncode}"]
    raise InputError(f"{path}: {compiler[0]} failed: {lines[0]}")


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)
