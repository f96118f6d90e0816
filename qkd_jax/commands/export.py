"""From a run's student to a detector in a file."""

import dataclasses
import importlib.metadata
import os
import re
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from qkd_jax.audio import log_mel_numpy as front_end
from qkd_jax.audio.reading import audio_blocks
from qkd_jax.config import EventConfig, LSTMConfig
from qkd_jax.data.dataset import load_split
from qkd_jax.detector import file as artefact
from qkd_jax.detector import reference, stream
from qkd_jax.detector.codes import GRID
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError
from qkd_jax.evaluation.operating_points import operating_points
from qkd_jax.evaluation.prediction import clip_logits
from qkd_jax.models.lstm_integer import to_detector
from qkd_jax.run_folder.folder import Run
from qkd_jax.runtimes import c, litert, onnx
from qkd_jax.runtimes.exported import open_exported, open_session
from qkd_jax.runtimes.jax import input_codes, to_steps

_BATCH = 32
_CHECKED = 32  # recordings
_CLOSE = {".tflite": 0.02}  # LiteRT rounds by its own rule
_SAME = 1e-3  # last bits of log-mel energies may move a code now and then
_GAP = 1.0  # seconds; see docs/results/detection.md


def export(run: Run, name: str, kind: str, path: Path | None = None) -> Path:
    """Write student `name` of the integer scheme to a file: `safetensors`, `onnx`, `litert` or `c`.

    By default it is RUN/NAME/NAME with the format's suffix; beside ONNX's for whole clips there is then
    one for single steps, NAME-step.onnx.  They are run over validation recordings and kept if their
    probabilities are the reference's; prints how near they are, bytes and time.  Raises InputError.
    """
    detector = student_detector(run, name)
    suffix = {"safetensors": ".safetensors", "onnx": ".onnx", "litert": ".tflite", "c": ".h"}[kind]
    path = path or run.folder / name / f"{name}{suffix}"
    if path.suffix != suffix:
        raise InputError(f"out: expected a file in {suffix} for {kind}, got {path}")
    recordings = _recordings(run)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        new = Path(folder) / path.name
        parts = _write(detector, run, name, kind, new)
        said = [f"{path}: {new.stat().st_size:,} bytes{parts}; {_compared(detector, new, recordings)}"]
        if kind == "onnx":
            step = path.with_name(f"{path.stem}-step.onnx")
            onnx.save(onnx.step_model(detector), new.with_name(step.name))
            said.append(f"{step}: {_compared_step(detector, new.with_name(step.name), recordings[0])}")
        for file in Path(folder).iterdir():
            os.replace(file, path.with_name(file.name))
    print("\n".join(said))
    return path


def student_detector(run: Run, name: str) -> Detector:
    """Student `name` as a detector, its thresholds such as `operating_points` finds on the validation split.

    Raises InputError if there is no such student, if it is not of the integer scheme, or not trained.
    """
    students = {key: net for key, net in run.config.networks.items() if isinstance(net, LSTMConfig)}
    student = students.get(name)
    if student is None:
        known = ", ".join(students) or "none"
        raise InputError(f"{run.folder}: no LSTM student {name!r}; there are: {known}")
    if student.quant.scheme != "integer":
        raise InputError(
            f"{run.folder}/{name}: expected a student of the integer scheme, found one of the paper's, whose "
            f"ranges no device knows; quant.scheme = integer, and start, train one"
        )
    detector = to_detector(run.config, student, run.best_variables(name))
    valid = load_split(run.config, run.clips, "valid", run.cache)

    @jax.jit
    def peaks(_, log_mel):
        return to_steps(detector, input_codes(detector, log_mel))[0].max(axis=1) / 2.0**GRID

    logits = clip_logits(peaks, None, valid, run.config.frames, _BATCH)
    seconds = sum(map(len, valid.features)) * run.config.features.hop_length / run.config.features.sample_rate
    points = operating_points(valid.targets, logits, valid.events, seconds / 3600)
    use = "10/h" if "10/h" in points else "eer"
    return dataclasses.replace(detector, detection=EventConfig(thresholds=points, use=use, gap_seconds=_GAP))


def _write(detector: Detector, run: Run, name: str, kind: str, path: Path) -> str:
    """Write the file; returns what its bytes are, if that is not plain."""
    if kind == "safetensors":
        versions = {library: importlib.metadata.version(library) for library in ("qkd_jax", "jax", "flax")}
        artefact.save(detector, path, {"run": run.config.name, "student": name} | versions)
    elif kind == "onnx":
        model = onnx.clip_model(detector)
        onnx.save(model, path)
        parts = (f"{part.replace('_', ' ')} {size:,}" for part, size in onnx.sizes(model).items())
        return f" ({', '.join(parts)})"
    elif kind == "litert":
        path.write_bytes(litert.to_litert(detector))
    else:
        header = c.to_c(detector)
        path.write_bytes(header.encode())
        [(flash, ram)] = re.findall(r"Flash: (\d+) bytes.*RAM: (\d+) bytes", header)
        return f" of text, flash {int(flash):,}, RAM {int(ram):,}"
    return ""


def _recordings(run: Run) -> list[np.ndarray]:
    """Waveforms of some validation clips, as long as the models hear."""
    samples = round(run.config.data.clip_seconds * run.config.features.sample_rate)
    clips = [clip for clip in run.clips if clip.split == "valid"][:_CHECKED]
    blocks = (next(audio_blocks(clip.path, run.config.features.sample_rate)) for clip in clips)
    return [np.resize(block, samples) for block in blocks]


def _compared(detector: Detector, path: Path, recordings: list[np.ndarray]) -> str:
    """How near the file is to the reference, and how fast; raises InputError if it isn't near."""
    exported, differences, seconds = open_exported(path), [], 0.0
    exported.clip_logits(recordings[0])  # loaded, and compiled
    for waveform in recordings:
        begun = time.perf_counter()
        logits = exported.clip_logits(waveform)
        seconds += time.perf_counter() - begun
        log_mel = front_end.log_mel(detector.features, waveform)
        expected = reference.clip_logits(detector, reference.input_codes(detector, log_mel))
        differences.append(abs(_sigmoid(logits) - _sigmoid(expected)).max())
    _check(path, float(np.mean(differences)))
    frames = len(recordings) * len(log_mel)
    return (
        f"{seconds / frames * 1e6:.1f} µs a frame; probabilities of {len(recordings)} recordings within "
        f"{np.max(differences):.1g} of the reference's"
    )


def _compared_step(detector: Detector, path: Path, waveform: np.ndarray) -> str:
    """As `_compared`, of the steps in one recording, all but the first from the state before."""
    session = open_session(path)
    about = session.get_modelmeta().custom_metadata_map
    window, hop = int(about["window_samples"]), int(about["hop_samples"])
    state = {item.name: np.zeros(item.shape, np.int32) for item in session.get_inputs()[1:]}
    names = ["logits", *(f"next_{name}" for name in state)]
    steps, begun = [], time.perf_counter()
    for first in range(0, len(waveform) - window + 1, hop):
        logits, *after = session.run(names, {"waveform": waveform[first : first + window], **state})
        state = dict(zip(state, after))
        steps.append(logits)
    seconds = (time.perf_counter() - begun) / len(steps)
    runtime = stream.in_numpy(detector)
    _, expected = stream.push(runtime, stream.start(runtime), waveform)
    difference = abs(_sigmoid(np.array(steps)) - _sigmoid(expected))
    _check(path, float(difference.mean()))
    return (
        f"{path.stat().st_size:,} bytes; {seconds * 1e6:.1f} µs a step of {window} samples, every {hop}; "
        f"probabilities of {len(steps)} steps within {difference.max():.1g} of the reference's"
    )


def _check(path: Path, difference: float) -> None:
    allowed = _CLOSE.get(path.suffix, _SAME)
    if not difference <= allowed:
        raise InputError(
            f"{path.name}: expected the reference's probabilities within {allowed:g} in the mean, found them "
            f"off by {difference:.3g}; please report this"
        )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
