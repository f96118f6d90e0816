"""Views: new recordings made from those for training, in files that are kept in the cache."""

import hashlib
import io
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkd_jax.data.cache import Places, digest, existing, in_parallel, place_in, writable
from qkd_jax.data.clips import VIEW, Clip
from qkd_jax.data.samples import clip_samples
from qkd_jax.errors import InputError
from qkd_jax.system.devices import shares, stop_all_if_asked
from qkd_jax.system.files import whole_file
from qkd_jax.system.interrupt import asked_to_stop
from qkd_jax.system.progress import track

_FORMAT = 1  # raise when the same settings give other views
_MIXTURES = 0.7
_CORNERS = 6
_LOWEST = 100.0  # Hz of the first corner


class Changes(NamedTuple):
    """The largest changes of a recording: of speed and pitch, as a fraction, and of levels in dB."""

    speed: float = 0.15
    filters: float = 6.0
    gain: float = 6.0


_CHANGES = Changes()  # our choice; docs/results/own.md has what it comes to


class View(NamedTuple):
    """View `number` of the first of `sources`, with the second added, if any; `seed` draws its changes."""

    sources: tuple[Clip, ...]
    number: int
    seed: tuple[int, ...]


def draw(
    clips: Sequence[Clip],
    folds: Sequence[int],
    count: int,
    seed: int,
    unlabelled: Sequence[Clip] = (),
    mixtures: float = _MIXTURES,
) -> list[View]:
    """`count` views of each of `clips`; to a share `mixtures`, another clip is added.

    It is of the same fold or one of `unlabelled`, so a head fitted without that fold has seen neither source.
    """
    members = {fold: np.flatnonzero(np.asarray(folds) == fold) for fold in set(folds)}
    ranks = {int(place): rank for some in members.values() for rank, place in enumerate(some)}
    views = []
    for number in range(1, count + 1):
        for place, (clip, fold) in enumerate(zip(clips, folds)):
            own = (seed, number, zlib.crc32(clip.name.encode("utf-8", "surrogateescape")))
            rng, some, sources = np.random.default_rng(own), members[fold], [clip]
            of_fold = len(some) - 1  # without the clip itself
            if of_fold + len(unlabelled) and rng.random() < mixtures:
                other = int(rng.integers(of_fold + len(unlabelled)))
                if other < of_fold:
                    sources.append(clips[some[other + (other >= ranks[place])]])
                else:
                    sources.append(unlabelled[other - of_fold])
            views.append(View(tuple(sources), number, own))
    return views


def make_views(
    views: Sequence[View],
    cache: Path,
    *,
    seconds: float,
    rate: int,
    channel: int | None = None,
    each: float = 0.0,
    changes: Changes = _CHANGES,
) -> list[Clip]:
    """`views` as clips without labels, in the group of their first source; missing files are made.

    The files, FLAC of `rate` Hz and at most `seconds`, are in `cache`/views, named by what they depend on.
    `each` is about how many bytes a view takes, with all that is computed of it.  Raises InputError if the
    disk lacks them, a recording can't be read, or a file can't be written.
    """
    key = f"views {_FORMAT} {tuple(changes)} {seconds} {rate} {channel}"
    folder = writable(cache)
    files = [place_in(cache, folder, _file_name(view, key)) for view in views]

    def make(places: Places) -> list[None]:
        for place in places:
            if not asked_to_stop():
                samples = samples_of_view(views[place], changes, seconds=seconds, rate=rate, channel=channel)
                _write(files[place], samples, rate)
        return [None] * len(places)

    missing = [place for place, file in enumerate(files) if not _is_whole(file)]
    if missing:
        _check_space(len(missing), each, folder)
    for share in shares():
        some = [place for place in missing[share] if not _is_whole(files[place])]
        for _ in track(in_parallel(make, some, 1), len(some), "views"):
            pass
        stop_all_if_asked()
    return [
        Clip(
            name=f"{VIEW}{view.number}:{view.sources[0].name}",
            root=file.parent,
            labels=frozenset(),
            group=view.sources[0].group,
            split="train",
            labelled=False,
            file=file.name,
        )
        for view, file in zip(views, files)
    ]


def samples_of_view(
    view: View, changes: Changes = _CHANGES, *, seconds: float, rate: int, channel: int | None = None
) -> np.ndarray:
    """The samples of a view at `rate` Hz, float32, within ±1."""
    rng = np.random.default_rng((*view.seed, 1))
    first, *others = (_changed(clip, changes, seconds, rate, channel, rng) for clip in view.sources)
    samples = sum((np.resize(other, len(first)) for other in others), first)
    return (samples / max(np.abs(samples).max(initial=0), 1)).astype(np.float32)


def _changed(
    clip: Clip, changes: Changes, seconds: float, rate: int, channel: int | None, rng: np.random.Generator
) -> np.ndarray:
    """A clip at another speed and level, filtered and shifted, of its own length, but at most `seconds`."""
    import soxr

    samples = clip_samples(clip, rate, channel)
    length = min(len(samples), round(seconds * rate))
    speed = np.exp(rng.uniform(-1, 1) * np.log1p(changes.speed))
    samples = soxr.resample(samples, rate * speed, rate)
    start = rng.integers(max(len(samples) - length, 0) + 1)
    samples = np.roll(np.resize(samples[start : start + length], length), rng.integers(length))
    octaves = np.log2(np.maximum(np.fft.rfftfreq(length, 1 / rate), _LOWEST))
    corners = np.linspace(np.log2(_LOWEST), np.log2(rate / 2), _CORNERS)
    level = rng.uniform(-changes.gain, changes.gain)
    decibels = level + np.interp(octaves, corners, rng.uniform(-changes.filters, changes.filters, _CORNERS))
    return np.fft.irfft(np.fft.rfft(samples) * 10 ** (decibels / 20), length)


def _file_name(view: View, key: str) -> str:
    parts = [f"{digest(clip.path, key)} {clip.part}" for clip in view.sources]
    name = hashlib.sha256("\n".join([*parts, str(view.seed)]).encode()).hexdigest()[:32]
    return f"views/{name[:2]}/{name[2:]}.flac"


def _is_whole(file: Path) -> bool:
    """Whether a view is there; a crash of the machine may leave an empty file."""
    return file.is_file() and file.stat().st_size > 0


def _check_space(count: int, each: float, cache: Path) -> None:
    """Print what `count` views will take; raise InputError if the disk has less."""
    needed, free = count * each, shutil.disk_usage(existing(cache)).free
    print(
        f"views: making {count}, about {needed / 1e6:,.0f} MB with features and taggers' outputs, in {cache}",
        flush=True,
    )
    if needed > free:
        raise InputError(
            f"{cache}: expected {needed / 1e9:.1f} GB free for views, found {free / 1e9:.1f} GB; "
            "--augment.views 0 makes none, --cache DIR puts them elsewhere"
        )


def _write(path: Path, samples: np.ndarray, rate: int) -> None:
    import soundfile

    # Not into the file itself: libsndfile doesn't say why it can't write.
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format="FLAC", subtype="PCM_16")
    with whole_file(path) as file:
        file.write(content.getvalue())
