"""A pretrained tagger as a teacher: an ONNX or LiteRT model of waveforms, run over recordings."""

import difflib
import glob
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.audio.reading import read_audio
from qkd_jax.config import from_json
from qkd_jax.config.fields import STRICT, Length, Rate
from qkd_jax.data.cache import cached, read_entry
from qkd_jax.data.clip_list import list_bad
from qkd_jax.data.clips import Clip
from qkd_jax.data.tables import read_table
from qkd_jax.distill.waveform_model import MAX_SAMPLES, open_model
from qkd_jax.errors import InputError

_MAX_CHARACTERS, _MAX_DOTS = 1 << 20, 2000
_FORMAT = 2  # raise when the same settings give other scores
_MARGIN = 1e-3  # our choice: 8-bit taggers give probabilities of 0, whose logit is minus infinity


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaggerConfig:
    """A pretrained tagger as a teacher, described in a TOML file; paths are relative to that file."""

    file: str
    """A model in .onnx or .tflite of a float32 waveform, [samples] or [1, samples]."""
    classes: str
    """Names of its classes in order: one name per line, or in a .csv the column `display_name`."""
    events: Annotated[dict[str, Annotated[tuple[str, ...], Field(min_length=1)]], Field(min_length=1)]
    """The classes of the tagger that stand for each event."""
    output: Literal["probabilities", "logits"] = "probabilities"
    """Meaning of its output for each class."""
    sample_rate: Rate = 16_000
    """Samples per second of its input; recordings at other rates are resampled."""
    window_seconds: Length | None = None
    """Length of its input; by default the model's fixed length, or else the whole recording."""
    hop_seconds: Length | None = None
    """Time from one window to the next; half a window by default."""
    layer: str | None = None
    """An inner tensor whose values are embeddings, by its name or a unique part of it (LiteRT only)."""


def tagger_logits(
    path: Path, clips: Sequence[Clip], events: Sequence[str], cache: Path, channel: int | None = None
) -> np.ndarray:
    """Logits of `clips`, float32 [clips, events], from the tagger described in the TOML file at `path`.

    `channel`, counted from 1, is the one to read; None means the mean of all.
    A class's score is its maximum over windows, an event's score the maximum over its classes.  A part of a
    recording has the windows whose centres are in it, or else the nearest.  Probabilities are clipped to
    [0.001, 0.999].  Events without classes of the tagger are NaN.  Scores are kept in `cache`.  Raises
    InputError if the file, the model, its class names or a recording can't be used.
    """
    config = read_tagger(path)
    model, names_file = path.parent / config.file, path.parent / config.classes
    names = _class_names(names_file)
    known = [event for event in events if event in config.events]
    if not known:
        raise InputError(
            f"{path}: events: expected some of {', '.join(events)}, got {', '.join(config.events)}"
        )
    columns = {event: _columns(path, event, config.events[event], names) for event in known}
    score, identity, clock = _scorer(model, config, len(names), names_file, channel)
    if clock is None and any(clip.part for clip in clips):
        raise InputError(
            f"{path}: window_seconds: expected a length, since recordings are cut into clips, found none"
        )
    entries, bad = cached(
        clips, score, cache, settings=f"tagger {_FORMAT} {identity}", width=len(names), title=path.stem
    )
    if bad:
        raise InputError(*list_bad(bad, len(clips)))
    scores, low, high = np.full((len(clips), len(events)), np.nan, np.float32), np.inf, -np.inf
    for row, entry, clip in zip(scores, entries, clips):
        class_scores = _windows_of(clip, read_entry(entry), clock).max(axis=0)
        low, high = min(low, class_scores.min()), max(high, class_scores.max())
        for event, chosen in columns.items():
            row[list(events).index(event)] = class_scores[chosen].max()
    if config.output == "logits":
        return scores
    if low < -_MARGIN or high > 1 + _MARGIN:
        raise InputError(
            f"{path}: output: expected probabilities, found {low:g} to {high:g}; "
            'if these are logits, output = "logits"'
        )
    scores = np.clip(scores, _MARGIN, 1 - _MARGIN)
    return np.log(scores) - np.log1p(-scores)


def read_tagger(path: Path) -> TaggerConfig:
    """The settings in the TOML file at `path`; raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
        # tomllib needs n² steps and bytes for a key with n dots.
        if len(text) > _MAX_CHARACTERS or text.count(".") > _MAX_DOTS:
            raise ValueError(f"at most {_MAX_CHARACTERS} characters, {_MAX_DOTS} of them dots")
        text = json.dumps(tomllib.loads(text))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a tagger's settings in TOML: {error}") from None
    return from_json(TaggerConfig, text, str(path))


def _class_names(path: Path) -> list[str]:
    if path.suffix == ".csv":
        return [row["display_name"] for _, row in read_table(path, ("display_name",), setting="classes")]
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").strip().split("\n")]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected one class name per line: {error}") from None


def _columns(path: Path, event: str, classes: Sequence[str], names: Sequence[str]) -> list[int]:
    for name in classes:
        if name not in names:
            near = "".join(f", maybe {other!r}" for other in difflib.get_close_matches(name, names, 1))
            raise InputError(f"{path}: events.{event}: expected classes of the tagger, got {name!r}{near}")
    return [index for index, name in enumerate(names) if name in classes]


def _scorer(
    model: Path, config: TaggerConfig, classes: int, names_file: Path, channel: int | None
) -> tuple[Callable[[Path], np.ndarray], str, tuple[float, float] | None]:
    """The function from a recording to scores float32 [windows, classes], safe in any thread; its cache key;
    and the length and the hop of its windows in seconds, None if the window is the recording.
    """
    samples, run = open_model(model)
    if config.window_seconds is not None:
        wanted = round(config.window_seconds * config.sample_rate)
        if samples not in (None, wanted):
            raise InputError(f"window_seconds: {model} takes {samples} samples, got {wanted}")
        samples = wanted
    if samples is not None and not 1 <= samples <= MAX_SAMPLES:
        raise InputError(f"window_seconds: expected 1 to {MAX_SAMPLES} samples, got {samples}")
    hop = round(config.hop_seconds * config.sample_rate) if config.hop_seconds else (samples or 0) // 2
    noise = np.random.default_rng(0).normal(0, 0.1, samples or 10 * config.sample_rate).astype(np.float32)
    outputs = run(noise)
    fitting = [index for index, output in enumerate(outputs) if output.shape[-1:] == (classes,)]
    if not fitting:
        raise InputError(
            f"{names_file}: {classes} class names; {model}: expected an output of that size, "
            f"found {', '.join(str(output.shape) for output in outputs)}"
        )
    whole = min(fitting, key=lambda index: outputs[index].size)  # other outputs may hold one row per frame

    def score(recording: Path) -> np.ndarray:
        waveform = read_audio(recording, config.sample_rate, channel=channel)
        windows = _windows(waveform, samples or len(waveform), max(hop, 1))
        scores = np.stack([run(window)[whole].reshape(-1, classes).max(axis=0) for window in windows])
        if not np.isfinite(scores).all():
            raise InputError(f"{model}: expected finite scores of {recording}, found NaN or infinity")
        return scores.astype(np.float32)

    digest = hashlib.sha256()
    # Weights may be in a file of their own, model.onnx.data.
    for file in sorted(model.parent.glob(f"{glob.escape(model.name)}*")):
        digest.update(file.read_bytes() if file.is_file() else b"")
    clock = (samples / config.sample_rate, max(hop, 1) / config.sample_rate) if samples else None
    return score, f"{digest.hexdigest()} {config.sample_rate} {samples} {hop} {channel}", clock


def _windows_of(clip: Clip, scores: np.ndarray, clock: tuple[float, float] | None) -> np.ndarray:
    """The rows of a recording's `scores` [windows, classes] that belong to the clip."""
    if clip.part is None or clock is None:
        return scores
    (start, end), (window, hop) = clip.part, clock
    centres = window / 2 + hop * np.arange(len(scores))
    centres[-1] -= hop / 2 * (len(scores) > 1)  # it ends with the recording, up to one hop earlier
    inside = (start <= centres) & (centres < end)
    return scores[inside] if inside.any() else scores[[np.abs(centres - (start + end) / 2).argmin()]]


def _windows(waveform: np.ndarray, samples: int, hop: int) -> Iterator[np.ndarray]:
    """Windows every `hop` samples, and one that ends with the recording; a shorter recording is tiled."""
    last = len(waveform) - samples
    if last < 0:
        yield np.resize(waveform, samples)
        return
    for start in [*range(0, last, hop), last]:
        yield waveform[start : start + samples]
