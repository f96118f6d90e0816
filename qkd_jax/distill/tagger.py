"""A pretrained tagger: an ONNX or LiteRT model of waveforms, run over recordings."""

import dataclasses
import difflib
import glob
import hashlib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.audio.reading import read_audio
from qkd_jax.config import from_json
from qkd_jax.config.fields import STRICT, Length, Rate
from qkd_jax.data.cache import Entries, cached, read_entry
from qkd_jax.data.clip_list import list_bad
from qkd_jax.data.clips import Clip
from qkd_jax.data.tables import read_table
from qkd_jax.distill.waveform_model import MAX_SAMPLES, Run, open_model
from qkd_jax.errors import InputError

_MAX_CHARACTERS, _MAX_DOTS = 1 << 20, 2000
_FORMAT = 3  # raise when the same settings give other scores
_MARGIN = 1e-3  # our choice: 8-bit taggers give probabilities of 0, whose logit is minus infinity


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaggerConfig:
    """A pretrained tagger, described in a TOML file; paths are relative to that file."""

    file: str
    """A model in .onnx or .tflite of a float32 waveform, [samples] or [1, samples]."""
    classes: str | None = None
    """Names of its classes in order: one name per line, or in a .csv the column `display_name`.  Without
    them, only a head can use the tagger: its layer, or else its first output."""
    events: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
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
    """An output, or with LiteRT an inner tensor, whose values are embeddings, by its name or a unique part of
    it."""

    def __post_init__(self) -> None:
        if self.events and self.classes is None:
            raise ValueError("classes: expected the names of its classes, since events name some, found none")


@dataclasses.dataclass(frozen=True)
class Tagger:
    """A tagger on `clips`: a clip's outputs are float32 [windows, classes + size of the layer].

    The first `classes` columns are scores, as the model gives them.  `window` and `hop`, in seconds, are 0
    if a window is a whole recording.
    """

    path: Path
    config: TaggerConfig
    names: Sequence[str]
    classes: int
    identity: str
    window: float
    hop: float
    clips: Sequence[Clip]
    entries: Entries

    def outputs(self, clip: int) -> np.ndarray:
        """The outputs of the windows whose centres are in a clip, or else of the nearest."""
        rows, part = read_entry(self.entries[clip]), self.clips[clip].part
        if part is None or not self.hop:
            return rows
        (start, end), centres = part, self._centres(len(rows))
        inside = (start <= centres) & (centres < end)
        return rows[inside] if inside.any() else rows[[np.abs(centres - (start + end) / 2).argmin()]]

    def centres(self, clip: int, windows: int) -> np.ndarray:
        """The centres of a clip's `windows`, in seconds from its start; -1 for a whole recording's."""
        if not self.hop:
            return np.full(windows, -1.0)
        part = self.clips[clip].part
        if part is None:
            return self._centres(windows)
        centres = self._centres(len(read_entry(self.entries[clip])))
        inside = centres[(part[0] <= centres) & (centres < part[1])]
        return (inside if len(inside) else np.array([sum(part) / 2])) - part[0]

    def _centres(self, windows: int) -> np.ndarray:
        centres = self.window / 2 + self.hop * np.arange(windows)
        centres[-1] -= self.hop / 2 * (windows > 1)  # it ends with the recording, up to one hop earlier
        return centres

    def logits(self, outputs: np.ndarray) -> np.ndarray:
        """The logits of the classes, from `outputs` [windows, …]: probabilities clipped to [0.001, 0.999].

        Raises InputError for scores that can't be probabilities.
        """
        scores = outputs[:, : self.classes]
        if self.config.output == "logits":
            return scores
        low, high = scores.min(initial=0.5), scores.max(initial=0.5)
        if low < -_MARGIN or high > 1 + _MARGIN:
            raise InputError(
                f"{self.path}: output: expected probabilities, found {low:g} to {high:g}; "
                'if these are logits, output = "logits"'
            )
        scores = np.clip(scores, _MARGIN, 1 - _MARGIN)
        return np.log(scores) - np.log1p(-scores)

    def event_logits(self, outputs: np.ndarray, events: Sequence[str]) -> np.ndarray:
        """The logits of `events` [windows, events]: the maximum over an event's classes, NaN without any."""
        logits = self.logits(outputs)
        result = np.full((len(logits), len(events)), np.nan, np.float32)
        for place, event in enumerate(events):
            if event in self.config.events:
                columns = [i for i, name in enumerate(self.names) if name in self.config.events[event]]
                result[:, place] = logits[:, columns].max(axis=1)
        return result


def tagger_logits(
    path: Path, clips: Sequence[Clip], events: Sequence[str], cache: Path, channel: int | None = None
) -> np.ndarray:
    """Logits of `clips`, float32 [clips, events], from the tagger described in the TOML file at `path`.

    An event's logit is the maximum over windows and over its classes; NaN for events without classes of the
    tagger.  Raises InputError as `run_tagger` does, and if the tagger knows none of `events`.
    """
    config = read_tagger(path)
    if not any(event in config.events for event in events):
        raise InputError(
            f"{path}: events: expected some of {', '.join(events)}, got {', '.join(config.events) or 'none'}"
        )
    tagger = run_tagger(path, clips, cache, channel)
    rows = (tagger.event_logits(tagger.outputs(clip), events) for clip in range(len(clips)))
    return np.stack([row.max(axis=0) for row in rows])


def run_tagger(path: Path, clips: Sequence[Clip], cache: Path, channel: int | None = None) -> Tagger:
    """The tagger described in the TOML file at `path`, run over `clips`; outputs are kept in `cache`.

    `channel`, counted from 1, is the one to read; None means the mean of all.  Raises InputError if the file,
    the model, its class names or a recording can't be used.
    """
    config = read_tagger(path)
    names = _class_names(path.parent / config.classes) if config.classes else []
    for event, classes in config.events.items():
        _check_names(path, event, classes, names)
    model = _opened(path, config, names)
    if model.samples is None and any(clip.part for clip in clips):
        raise InputError(
            f"{path}: window_seconds: expected a length, since recordings are cut into clips, found none"
        )
    entries, bad = cached(
        clips,
        lambda clip: model.outputs(clip.path, clip.channel(channel)),
        cache,
        settings=f"tagger {_FORMAT} {model.identity} {channel}",
        width=model.classes + model.layer_size,
        title=path.stem,
    )
    if bad:
        raise InputError(*list_bad(bad, len(clips)))
    rate = config.sample_rate
    window, hop = (model.samples / rate, model.hop / rate) if model.samples else (0.0, 0.0)
    identity = f"{model.identity} {sorted(config.events.items())}"
    return Tagger(path, config, names, model.classes, identity, window, hop, clips, entries)


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


def _check_names(path: Path, event: str, classes: Sequence[str], names: Sequence[str]) -> None:
    for name in classes:
        if name not in names:
            near = "".join(f", maybe {other!r}" for other in difflib.get_close_matches(name, names, 1))
            raise InputError(f"{path}: events.{event}: expected classes of the tagger, got {name!r}{near}")


def files_of(model: Path) -> list[Path]:
    """The files of a model: weights may be in one of their own, model.onnx.data."""
    beside = sorted(model.parent.glob(f"{glob.escape(model.name)}*"))
    return [file for file in beside if file.is_file()]


@dataclasses.dataclass(frozen=True)
class _Model:
    """A tagger's model, opened: `run` maps a window of `samples`, None for any number, to its outputs.

    `place` is that of the class scores among the outputs; a layer's values are the last output.
    """

    file: Path
    config: TaggerConfig
    run: Run
    samples: int | None
    hop: int
    place: int
    classes: int
    layer_size: int

    @property
    def identity(self) -> str:
        """What the outputs depend on."""
        digest = hashlib.sha256()
        for file in files_of(self.file):
            digest.update(file.read_bytes())
        config = self.config
        layer = f" {self.place} {config.layer}" if config.layer else ""
        return f"{digest.hexdigest()} {config.sample_rate} {self.samples} {self.hop} {self.classes}{layer}"

    def outputs(self, recording: Path, channel: int | None) -> np.ndarray:
        """The outputs on a recording, float32 [windows, classes + layer_size]; safe in any thread."""
        waveform = read_audio(recording, self.config.sample_rate, channel=channel)
        windows = _windows(waveform, self.samples or len(waveform), self.hop)
        rows = np.stack([self._row(self.run(window)) for window in windows])
        if not np.isfinite(rows).all():
            raise InputError(f"{self.file}: expected finite scores of {recording}, found NaN or infinity")
        return rows

    def _row(self, outputs: list[np.ndarray]) -> np.ndarray:
        scores = outputs[self.place].reshape(-1, self.classes).max(axis=0) if self.classes else np.zeros(0)
        if not self.layer_size:
            return scores.astype(np.float32)
        values = np.atleast_1d(outputs[-1])
        if values.shape[-1] != self.layer_size:
            raise InputError(
                f"{self.file}: layer: expected {self.config.layer} to have {self.layer_size} values for any "
                f"window, found {values.shape[-1]}"
            )
        layer = values.reshape(-1, self.layer_size).mean(axis=0)
        return np.concatenate([scores, layer], dtype=np.float32)


def _opened(path: Path, config: TaggerConfig, names: Sequence[str]) -> _Model:
    file = path.parent / config.file
    samples, run = open_model(file, config.layer)
    if config.window_seconds is not None:
        wanted = round(config.window_seconds * config.sample_rate)
        if samples not in (None, wanted):
            raise InputError(f"window_seconds: {file} takes {samples} samples, got {wanted}")
        samples = wanted
    if samples is not None and not 1 <= samples <= MAX_SAMPLES:
        raise InputError(f"window_seconds: expected 1 to {MAX_SAMPLES} samples, got {samples}")
    hop = round(config.hop_seconds * config.sample_rate) if config.hop_seconds else (samples or 0) // 2
    noise = np.random.default_rng(0).normal(0, 0.1, samples or 10 * config.sample_rate).astype(np.float32)
    outputs = run(noise)
    layer_size = np.atleast_1d(outputs.pop()).shape[-1] if config.layer else 0
    place, classes = _scores_of(path, config, names, outputs)
    return _Model(file, config, run, samples, max(hop, 1), place, classes, layer_size)


def _scores_of(
    path: Path, config: TaggerConfig, names: Sequence[str], outputs: Sequence[np.ndarray]
) -> tuple[int, int]:
    """The place among the `outputs` of the scores, and their number: 0 if a layer is all there is."""
    if config.classes is None:
        if config.layer:
            return 0, 0
        return 0, outputs[0].shape[-1] if outputs[0].ndim else 1
    fitting = [index for index, output in enumerate(outputs) if output.shape[-1:] == (len(names),)]
    if not fitting:
        raise InputError(
            f"{path.parent / config.classes}: {len(names)} class names; {path.parent / config.file}: "
            f"expected an output of that size, found {', '.join(str(output.shape) for output in outputs)}"
        )
    # Other outputs may hold one row per frame.
    return min(fitting, key=lambda index: outputs[index].size), len(names)


def _windows(waveform: np.ndarray, samples: int, hop: int) -> Iterator[np.ndarray]:
    """Windows every `hop` samples, and one that ends with the recording; a shorter recording is tiled."""
    last = len(waveform) - samples
    if last < 0:
        yield np.resize(waveform, samples)
        return
    for start in [*range(0, last, hop), last]:
        yield waveform[start : start + samples]
