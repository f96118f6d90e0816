"""Export a student for a device."""

import contextlib
import dataclasses
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from pydantic.dataclasses import dataclass

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.commands.cli import docstring
from qkd_jax.commands.override import override
from qkd_jax.config import EventConfig, LSTMConfig, is_integer
from qkd_jax.config.fields import STRICT, FormatName
from qkd_jax.data.clips import targets
from qkd_jax.data.dataset import load_split
from qkd_jax.data.samples import clip_samples
from qkd_jax.detector import reference, stream
from qkd_jax.detector.codes import LOGIT_EXPONENT
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import single_label
from qkd_jax.evaluation.operating_points import operating_points
from qkd_jax.evaluation.prediction import clip_logits
from qkd_jax.models.lstm_integer import to_detector
from qkd_jax.run_folder.folder import find_model, load_run
from qkd_jax.run_folder.recordings import check_recordings
from qkd_jax.run_folder.run import Run
from qkd_jax.runtimes import FORMATS, TOLERANCES, open_clip, write
from qkd_jax.runtimes.jax import input_codes, to_steps
from qkd_jax.system.devices import computing

_BATCH = 32
_CHECKED = 32  # recordings
_GAP_SECONDS = 1.0  # measured in docs/results/detection.md


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportOptions:
    """Export settings."""

    format: FormatName = "safetensors"
    """Format: safetensors (for qkd-jax detect), onnx, litert, or c (a C99 header)."""
    out: str | None = None
    """Output file (default: RUN/MODEL plus the format's suffix)."""


def main(arguments: list[str], prog: str) -> None:
    """Export the model that `arguments` start with."""
    options_from = partial(override, prog=f"{prog} RUN/MODEL", description=docstring(__file__))
    if not arguments or arguments[0].startswith("-"):
        options_from(ExportOptions(), arguments)  # exits for --help
        raise InputError(f"RUN/MODEL: expected a model first, got {arguments[0] if arguments else 'none'}")
    options = options_from(ExportOptions(), arguments[1:])
    run, model = find_model(arguments[0])
    if model is None:
        students = ", ".join(_students(run)) or "this run has no student in the integer-only scheme"
        raise InputError(f"{arguments[0]}: expected RUN/MODEL ({students}), got a run folder")
    export(run, model, format=options.format, out=options.out)


@computing()
def export(
    run: Run | Path | str, model: str, *, format: FormatName = "safetensors", out: Path | str | None = None
) -> Path:
    """Write a student in the integer-only scheme to a file, by default RUN/MODEL with the format's suffix.

    ONNX also gets a model of single steps, MODEL-step.onnx.  Each file is run on validation recordings and
    kept only if its probabilities agree with the reference; prints how closely, bytes and speed.  Returns the
    file's path.  Raises InputError.
    """
    run = run if isinstance(run, Run) else load_run(run)
    path = Path(out) if out else run.folder / f"{model}{FORMATS[format]}"
    if path.suffix != FORMATS[format]:
        raise InputError(f"--out: expected a name ending in {FORMATS[format]}, got {path}")
    versions = {library: importlib.metadata.version(library) for library in ("qkd_jax", "jax", "flax")}
    provenance = {"run": run.config.name, "student": model} | versions
    with _folder_beside(path) as folder:  # before the computation, which would be in vain
        detector, recordings = student_detector(run, model), _recordings(run)
        new = Path(folder) / path.name
        parts = write(format, detector, new, provenance)
        size = f"{new.stat().st_size:,} bytes" + (f" ({parts})" if parts else "")
        single = single_label(targets([clip for clip in run.clips if clip.labelled], detector.events))
        lines = [f"{path}: {size}; {_compare(detector, new, recordings, single)}"]
        if format == "onnx":
            step = path.with_name(f"{path.stem}-step.onnx")
            lines.append(f"{step}: {_compare_steps(detector, new.with_name(step.name), recordings[0])}")
        for file in Path(folder).iterdir():
            os.replace(file, path.with_name(file.name))
    print("\n".join(lines))
    return path


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[str]:
    """A new folder beside `path`, removed in the end; raises InputError if there can't be one."""
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".")
    except OSError as error:
        raise InputError(
            f"{path}: could not be written: {error.strerror}; --out FILE writes to another place"
        ) from None
    with folder as name:
        yield name


def student_detector(run: Run, name: str) -> Detector:
    """Student `name` as a detector, with thresholds from `operating_points` on the validation split.

    Raises InputError if there is no such student, isn't in the integer-only scheme, or isn't trained.
    """
    if name not in (students := _students(run)):
        raise InputError(
            f"{run.folder}: expected a student in the integer-only scheme "
            f"({', '.join(students) or 'this run has none; presets demo and small have such students'}), "
            f"got {name!r}"
        )
    network = run.config.models[name].network
    assert isinstance(network, LSTMConfig)
    check_recordings(run, ["valid"])
    data, features = run.config.data, run.config.features
    detector = to_detector(
        network,
        run.best_variables(name),
        features=features,
        events=data.events,
        clip_seconds=data.clip_seconds,
    )
    valid = load_split(run.config, run.clips, "valid", run.cache)

    @jax.jit
    def peaks(_, log_mel):
        return to_steps(detector, input_codes(detector, log_mel))[0].max(axis=1) / 2.0**LOGIT_EXPONENT

    logits = clip_logits(peaks, None, valid, run.config.frames, _BATCH)
    seconds = sum(map(len, valid.features)) * features.hop_length / features.sample_rate
    points = operating_points(valid.targets, logits, valid.events, seconds / 3600)
    use = "10/h" if "10/h" in points else "eer"
    return dataclasses.replace(
        detector, event_config=EventConfig(thresholds=points, use=use, gap_seconds=_GAP_SECONDS)
    )


def _students(run: Run) -> list[str]:
    return [name for name, model in run.config.models.items() if is_integer(model.network)]


def _recordings(run: Run) -> list[np.ndarray]:
    """Waveforms of some validation clips, as long as the models' input."""
    samples = round(run.config.data.clip_seconds * run.config.features.sample_rate)
    clips = [clip for clip in run.clips if clip.split == "valid"][:_CHECKED]
    rate, channel = run.config.features.sample_rate, run.config.data.channel
    return [np.resize(clip_samples(clip, rate, channel), samples) for clip in clips]


def _compare(detector: Detector, path: Path, recordings: list[np.ndarray], single: bool) -> str:
    """How closely the file agrees with the reference, and its speed; raises InputError if it disagrees.

    If `single`, a recording has one event, and those with the same prediction are counted.
    """
    exported, differences, same, seconds = open_clip(path), [], 0, 0.0
    exported.clip_logits(recordings[0])  # loads and compiles
    for waveform in recordings:
        begun = time.perf_counter()
        logits = exported.clip_logits(waveform)
        seconds += time.perf_counter() - begun
        features = log_mel(detector.features, waveform)
        expected = reference.clip_logits(detector, reference.input_codes(detector, features))
        differences.append(abs(_sigmoid(logits) - _sigmoid(expected)).max())
        same += int(logits.argmax() == expected.argmax())
    _check(path, float(np.mean(differences)))
    frames = len(recordings) * len(features)
    return (
        f"{seconds / frames * 1e6:.1f} µs per frame; largest probability difference from the reference, "
        f"{len(recordings)} recordings: {np.max(differences):.1g}"
        + (f"; the same prediction for {same} of {len(recordings)}" if single else "")
    )


def _compare_steps(detector: Detector, path: Path, waveform: np.ndarray) -> str:
    """Like `_compare`, for the steps of one recording."""
    from qkd_jax.runtimes.onnx import open_step

    runtime, numpy = open_step(detector, path), stream.in_numpy(detector)
    begun = time.perf_counter()
    _, steps = stream.push(runtime, stream.start(runtime), waveform)
    seconds = (time.perf_counter() - begun) / len(steps)
    _, expected = stream.push(numpy, stream.start(numpy), waveform)
    difference = abs(_sigmoid(steps) - _sigmoid(expected))
    _check(path, float(difference.mean()))
    return (
        f"{path.stat().st_size:,} bytes; {seconds * 1e6:.1f} µs per step; "
        f"largest probability difference from the reference, {len(steps)} steps: {difference.max():.1g}"
    )


def _check(path: Path, difference: float) -> None:
    if not difference <= (allowed := TOLERANCES[path.suffix]):
        raise InputError(
            f"{path.name}: expected a mean probability difference of at most {allowed:g} from the reference, "
            f"found {difference:.3g}; please report this bug"
        )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
