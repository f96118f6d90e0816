"""Views: new recordings made from those for training, in files that are kept in the cache."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkd_jax.audio.reading import read_audio
from qkd_jax.config import ViewConfig, to_json
from qkd_jax.data.cache import Places, digest, in_parallel
from qkd_jax.data.clips import VIEW, Clip
from qkd_jax.system.devices import shares, stop_all_if_asked
from qkd_jax.system.files import whole_file
from qkd_jax.system.interrupt import asked_to_stop
from qkd_jax.system.progress import track

_FORMAT = 1  # raise when the same settings give other views
_CORNERS = 6
_LOWEST = 100.0  # Hz of the first corner


class View(NamedTuple):
    """A view of the first of `sources`, with the second added if there is one; `seed` draws the changes."""

    sources: tuple[Clip, ...]
    seed: tuple[int, ...]


def draw(clips: Sequence[Clip], folds: Sequence[int], count: int, mixtures: float, seed: int) -> list[View]:
    """`count` views of each of `clips`; to a share `mixtures`, another clip of the same fold is added.

    So a teacher that was fitted without a fold doesn't know either of a view's sources.
    """
    members = {fold: np.flatnonzero(np.asarray(folds) == fold) for fold in set(folds)}
    views = []
    for number in range(count):
        for place, clip in enumerate(clips):
            rng = np.random.default_rng((seed, number, place))
            other = int(rng.choice(members[folds[place]]))
            mixed = rng.random() < mixtures and other != place
            views.append(View((clip, clips[other]) if mixed else (clip,), (seed, number, place)))
    return views


def make_views(
    views: Sequence[View],
    config: ViewConfig,
    folder: Path,
    *,
    seconds: float,
    rate: int,
    channel: int | None = None,
) -> list[Clip]:
    """`views` as clips without labels, in the group of their first source; missing files are made.

    The files, FLAC of `rate` Hz and at most `seconds`, are in `folder`, named by what they depend on.  Raises
    InputError if a recording can't be read or a file can't be written.
    """
    settings = (
        f"views {_FORMAT} {to_json(replace(config, count=0, least=0, mixtures=0))} {seconds} {rate} {channel}"
    )
    names = [_file_name(view, settings) for view in views]
    clips = [
        Clip(
            name=f"{VIEW}{view.seed[1] + 1}:{view.sources[0].name}",
            root=folder,
            labels=frozenset(),
            group=view.sources[0].group,
            split="train",
            labelled=False,
            file=name,
        )
        for view, name in zip(views, names)
    ]

    def make(places: Places) -> list[None]:
        for place in places:
            if not asked_to_stop():
                samples = samples_of_view(views[place], config, seconds=seconds, rate=rate, channel=channel)
                _write(folder / names[place], samples, rate)
        return [None] * len(places)

    for share in shares():
        missing = [place for place in range(len(views))[share] if not (folder / names[place]).is_file()]
        for _ in track(in_parallel(make, missing, 1), len(missing), "views"):
            pass
        stop_all_if_asked()
    return clips


def samples_of_view(
    view: View, config: ViewConfig, *, seconds: float, rate: int, channel: int | None = None
) -> np.ndarray:
    """The samples of a view at `rate` Hz, float32, within ±1."""
    rng = np.random.default_rng((*view.seed, 1))
    first, *others = (_changed(clip, config, seconds, rate, channel, rng) for clip in view.sources)
    samples = sum((np.resize(other, len(first)) for other in others), first)
    return (samples / max(np.abs(samples).max(initial=0), 1)).astype(np.float32)


def _changed(
    clip: Clip, config: ViewConfig, seconds: float, rate: int, channel: int | None, rng: np.random.Generator
) -> np.ndarray:
    """A clip at another speed and level, filtered and shifted, of its own length, but at most `seconds`."""
    import soxr

    samples = _part(clip, rate, channel)
    length = min(len(samples), round(seconds * rate))
    speed = np.exp(rng.uniform(-1, 1) * np.log1p(config.speed))
    samples = soxr.resample(samples, rate * speed, rate)
    start = rng.integers(max(len(samples) - length, 0) + 1)
    samples = np.roll(np.resize(samples[start : start + length], length), rng.integers(length))
    decibels = rng.uniform(-config.gain, config.gain)
    decibels = decibels + np.interp(
        np.fft.rfftfreq(length, 1 / rate),
        np.geomspace(_LOWEST, rate / 2, _CORNERS),
        rng.uniform(-config.filters, config.filters, _CORNERS),
    )
    return np.fft.irfft(np.fft.rfft(samples) * 10 ** (decibels / 20), length)


def _part(clip: Clip, rate: int, channel: int | None) -> np.ndarray:
    if clip.part is None:
        return read_audio(clip.path, rate, channel=channel)
    start, end = (round(seconds * rate) for seconds in clip.part)
    return _recording(clip.path, rate, channel)[start:end]


@functools.lru_cache(4)
def _recording(path: Path, rate: int, channel: int | None) -> np.ndarray:
    """A long recording: its parts come one after the other."""
    return read_audio(path, rate, channel=channel)


def _file_name(view: View, settings: str) -> str:
    parts = [f"{digest(clip.path, settings)} {clip.part}" for clip in view.sources]
    name = hashlib.sha256("\n".join([*parts, str(view.seed)]).encode()).hexdigest()[:32]
    return f"{name[:2]}/{name[2:]}.flac"


def _write(path: Path, samples: np.ndarray, rate: int) -> None:
    import soundfile

    with whole_file(path) as file:
        soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
