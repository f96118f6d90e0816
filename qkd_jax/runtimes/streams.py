"""A detector's steps in each runtime, by its own model as export.py writes it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qkd_jax.config import step_samples
from qkd_jax.config.fields import RuntimeName
from qkd_jax.detector.codes import GRID
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.stream import Cells, Runtime, in_numpy


def open_runtime(name: RuntimeName, detector: Detector) -> Runtime:
    """`detector` in the runtime `name`.

    From the codes of the input on all but LiteRT compute what NumPy does.  C and ONNX have front ends of
    their own, the others NumPy's.  Raises InputError if a library is missing, or if there is no such model.
    """
    return _OPEN[name](detector)


def _jax(detector: Detector) -> Runtime:
    from qkd_jax.runtimes.jax import in_jax

    return in_jax(detector)


def _onnx(detector: Detector) -> Runtime:
    from qkd_jax.runtimes import onnx
    from qkd_jax.runtimes.exported import open_session

    with _file("detector.onnx") as path:
        onnx.save(onnx.step_model(detector), path)
        session = open_session(path)
    state = [item.name for item in session.get_inputs()[1:]]
    answers = ["logits", *(f"next_{name}" for name in state)]

    def step(cells: Cells, waveform: np.ndarray) -> tuple[Cells, np.ndarray]:
        logits, *after = session.run(answers, {"waveform": waveform, **dict(zip(state, cells))})
        return tuple(after), logits

    return Runtime(
        detector, in_numpy(detector).start, _each(step, *step_samples(detector.features, detector.network))
    )


def _litert(detector: Detector) -> Runtime:
    from qkd_jax.audio import log_mel_numpy as front_end
    from qkd_jax.runtimes import litert

    with _file("detector.tflite") as path:
        path.write_bytes(litert.to_litert(detector))
        runner = litert.load(path)
    each = _each(
        lambda cells, frames: runner.step(cells, frames)[:2],
        detector.network.receptive_field,
        detector.network.stride,
    )

    def advance(cells: Cells, samples: np.ndarray) -> tuple[Cells, np.ndarray]:
        return each(cells, front_end.log_mel(detector.features, samples))

    return Runtime(detector, runner.start, advance)


def _c(detector: Detector) -> Runtime:
    from qkd_jax.runtimes import c, c_run

    with _file("detector.h") as path:
        path.write_text(c.to_c(detector))
        runner = c_run.compile_c(path)
    window, hop = step_samples(detector.features, detector.network)

    def advance(cells: Cells, samples: np.ndarray) -> tuple[Cells, np.ndarray]:
        cells, outputs = runner.steps(cells, samples, (len(samples) - window) // hop + 1)
        return cells, (outputs / 2.0**GRID).astype(np.float32)

    return Runtime(detector, in_numpy(detector).start, advance)


_Advance = Callable[[Cells, np.ndarray], tuple[Cells, np.ndarray]]


def _each(step: _Advance, window: int, hop: int) -> _Advance:
    """One `step` after the other, over windows of what comes."""

    def advance(cells: Cells, heard: np.ndarray) -> tuple[Cells, np.ndarray]:
        logits = []
        for first in range(0, len(heard) - window + 1, hop):
            cells, said = step(cells, heard[first : first + window])
            logits.append(said)
        return cells, np.array(logits)

    return advance


@contextmanager
def _file(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name


_OPEN = {"numpy": in_numpy, "jax": _jax, "onnx": _onnx, "litert": _litert, "c": _c}
