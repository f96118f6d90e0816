"""Find what would spoil a run in its recordings and labels: leaks, shortcuts, too little of something."""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkd_jax.config import AnyData, RunConfig
from qkd_jax.data.cache import count_rows, read_entry
from qkd_jax.data.clips import SPLITS, Clip, targets
from qkd_jax.data.measure import FULL_SCALE, Measured, decibels
from qkd_jax.data.parts import length_of
from qkd_jax.data.sources.walk import recordings_below
from qkd_jax.errors import printable

_FEW = 10
"""With fewer positives in a split, one recording moves a rate by more than ten points."""
_LONG = 3
"""A crop of a recording so many times as long as a clip may well lack the event of its label."""
_TELLING, _DEVIATIONS = 0.9, 3.5
"""A property tells an event if its AUC is above the first, and so many standard deviations above chance."""
_BINS, _FOLDS, _ENOUGH = 50, 5, 10_000
_CLIPPED = 1e-3
_QUIET = -60.0
_OFFSET = 0.02
_DEAD = 60.0
_CANCELLED = 20.0
_SHOWN, _NAMED = 3, 8
_MIDDLE = 256  # bytes
_HOLD_MORE = {"audioset", "desed", "demo"}
_TELL = {"folders", "timed", "audacity", "raven"}
"""Sources that print which recordings they leave out, and sources whose folders hold more than is read."""
_MANY = 100_000
"""With more recordings, opening each file of features takes minutes."""


class Item(NamedTuple):
    """Recordings that share a fault, or one alone, and a note about them."""

    names: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        names = ", ".join(self.names[:_NAMED])
        if len(self.names) > _NAMED:
            return printable(f"{names} and {len(self.names) - _NAMED:,} more")
        return printable(f"{names} ({self.note})" if names and self.note else names or self.note)


class Finding(NamedTuple):
    """What was found; `severity` is 1 if figures would be wrong, 2 if models would suffer, otherwise 3."""

    severity: int
    what: str
    items: tuple[Item, ...]

    def __str__(self) -> str:
        more = f" and {len(self.items) - _SHOWN:,} more" if len(self.items) > _SHOWN else ""
        return f"{self.what} ({len(self.items):,}):\n  {'; '.join(map(str, self.items[:_SHOWN]))}{more}"


def early_findings(
    config: RunConfig, clips: Sequence[Clip], entries: Sequence[Path], listed: Sequence[Clip]
) -> list[Finding]:
    """What tables, names of files and cached features tell, the worst first.

    `clips` have splits, and `entries` are the files with their features, of which some bytes are read, and
    the whole of those that seem to be equal.  `listed` are all clips of the source.
    """
    features = config.features
    rows = [count_rows(entry, features.n_mels) for entry in entries]
    seconds = np.array([length_of(clip, count, features) for clip, count in zip(clips, rows)])
    return _in_order(
        in_tables(clips, config.data.events),
        in_lengths(config, clips, seconds),
        in_copies(clips, _equal_entries(entries, rows) if len(entries) <= _MANY else ()),
        shortcuts(clips, config.data.events, {"length": _in_clip(config, seconds)}),
        () if config.data.source in _TELL else unlisted(config.data, listed),
    )


def all_findings(
    config: RunConfig, clips: Sequence[Clip], found: Sequence[Measured], listed: Sequence[Clip]
) -> list[Finding]:
    """What the measured recordings of `clips`, which can be used and have splits, tell, the worst first.

    `listed` are all clips of the source.
    """
    seconds = np.array([np.ptp(extent(clip, each)) for clip, each in zip(clips, found)])
    properties = {
        "length": _in_clip(config, seconds),
        "level": np.array([each.level for each in found]),
        "sample rate": np.array([each.rate for each in found]),
        "band limit": np.array([each.band for each in found]),
    }
    digests = [each.digest or index for index, each in enumerate(found)]
    return _in_order(
        in_tables(clips, config.data.events),
        in_lengths(config, clips, seconds),
        in_copies(clips, _grouped(range(len(clips)), digests.__getitem__)),
        shortcuts(clips, config.data.events, properties),
        in_samples(clips, found),
        in_annotations(clips, found),
        unlisted(config.data, listed),
    )


def extent(clip: Clip, found: Measured) -> tuple[float, float]:
    """From where to where in its recording `clip` reaches, in seconds."""
    return clip.part or (0.0, found.seconds)


def name_of(clip: Clip) -> str:
    """The name of the clip's recording."""
    return clip.name if clip.part is None else clip.name.rpartition("#")[0]


def in_tables(clips: Sequence[Clip], events: Sequence[str]) -> Iterator[Finding]:
    """Groups in several splits, and events with few positives."""
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[clip.group].append(clip)
    yield from _found(
        1,
        "groups in several splits, which leaks training data",
        (
            Item(
                tuple(clip.name for clip in members),
                f"group {group}: {', '.join(str(clip.split) for clip in members)}",
            )
            for group, members in groups.items()
            if len({clip.split for clip in members}) > 1
        ),
    )
    counts = Counter((clip.split, label) for clip in clips for label in clip.labels)
    few = {
        event: [f"{counts[split, event]} {split}" for split in SPLITS if 0 < counts[split, event] < _FEW]
        for event in events
    }
    yield from _found(
        2,
        f"fewer than {_FEW} positives in a split, so figures vary widely",
        (Item((), f"{event}: {', '.join(parts)}") for event, parts in few.items() if parts),
    )


def in_lengths(config: RunConfig, clips: Sequence[Clip], seconds: np.ndarray) -> Iterator[Finding]:
    """Recordings that are long for a label without times, or repeated to fill a clip; `seconds` [clips]."""
    if config.timed:
        return
    length = config.data.clip_seconds
    events = set(config.data.events)
    yield from _found(
        2,
        f"recordings {_LONG} or more times as long as a clip ({length:g} s), with labels without times: "
        "crops may lack the event",
        _sorted(
            (-each, Item((clip.name,), f"{each:.4g} s"))
            for clip, each in zip(clips, seconds)
            if each >= _LONG * length and clip.annotations is None and events & clip.labels
        ),
    )
    short = _sorted(
        (each, Item((clip.name,), f"{each:.2g} s, {math.ceil(length / each)} times"))
        for clip, each in zip(clips, seconds)
        if 2 * each < length
    )
    yield from _found(
        3,
        f"recordings shorter than half a clip ({length:g} s), which are repeated; the median of all is "
        f"{np.median(seconds):.3g} s",
        short,
    )


def in_copies(clips: Sequence[Clip], groups: Iterable[Sequence[int]]) -> Iterator[Finding]:
    """The same sound under several names; `groups` holds the places in `clips` of equal sounds."""
    across, contrary, within = [], [], []
    for group in groups:
        splits: dict[Path, dict[str, None]] = defaultdict(dict)  # of each recording
        parts: dict[Hashable, list[Clip]] = defaultdict(list)
        for clip in (clips[place] for place in group):
            splits[clip.path][str(clip.split)] = None
            parts[clip.part].append(clip)
        if len(splits) == 1:
            continue
        names = tuple({clips[place].path: name_of(clips[place]) for place in group}.values())
        if len({split for some in splits.values() for split in some}) > 1:
            across.append(Item(names, ", ".join("/".join(some) for some in splits.values())))
        else:
            within.append(Item(names, *next(iter(splits.values()))))
        contrary += [
            Item(tuple(clip.name for clip in members), " / ".join(map(_labels, members)))
            for members in parts.values()
            if len({clip.labels for clip in members if clip.labelled}) > 1
        ]
    yield from _found(
        1, "the same sound under several names in several splits, which leaks training data", across
    )
    yield from _found(2, "the same sound under several names with different labels", contrary)
    yield from _found(3, "the same sound under several names in one split, where it counts as often", within)


def shortcuts(
    clips: Sequence[Clip], events: Sequence[str], properties: dict[str, np.ndarray]
) -> Iterator[Finding]:
    """Properties, each [clips], that alone tell an event from everything else."""
    labelled = [place for place, clip in enumerate(clips) if clip.labelled]
    if not labelled:
        return
    chosen = labelled[:: math.ceil(len(labelled) / _ENOUGH)]
    truth = targets([clips[place] for place in chosen], events) > 0
    positives = truth.sum(axis=0)
    others = len(truth) - positives
    with np.errstate(divide="ignore"):
        # Standard deviation of the AUC of chance (Mann and Whitney 1947).
        deviation = np.sqrt((len(truth) + 1) / (12 * positives * others))
    items = []
    for name, of_all in properties.items():
        values = of_all[chosen]
        for column, auc in enumerate(auc_of(values, truth)):
            if auc > _TELLING and auc - 0.5 > _DEVIATIONS * deviation[column]:
                has = truth[:, column]
                medians = (f"{round(np.median(values[place]), 2):,g}" for place in (has, ~has))
                note = "{} by {}: AUC {:.2f}, median {} {symbol}, elsewhere {} {symbol}"
                items.append(
                    Item((), note.format(events[column], name, auc, *medians, symbol=_SYMBOLS[name]))
                )
    yield from _found(
        1,
        "shortcuts: an event that one property gives away, which a model may learn instead of the sound",
        items,
    )


def auc_of(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AUC in [0, 1] of each event by one property, [events]: `values` [clips], `truth` bool [clips, events].

    A clip's score is the share of positives among clips of about the same value, counted in the other folds,
    so that "exactly 2 s" tells as well as "short".  NaN for events without positives or negatives.
    """
    from scipy.stats import rankdata

    count = len(values)
    bins = min(max(count // 10, 2), _BINS)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[:-1]))
    place, fold = np.searchsorted(edges, values, side="right"), np.arange(count) % _FOLDS
    clips = np.zeros((len(edges) + 1, _FOLDS, 1))
    positives = np.zeros((len(edges) + 1, _FOLDS, truth.shape[1]))
    np.add.at(clips, (place, fold), 1)
    np.add.at(positives, (place, fold), truth)
    positives, clips = (each.sum(axis=1, keepdims=True) - each for each in (positives, clips))
    # One more clip at the mean rate, for bins without any in the other folds.
    scores = ((positives + truth.mean(axis=0)) / (clips + 1))[place, fold]
    there = truth.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        above = (rankdata(scores, axis=0) * truth).sum(axis=0) - there * (there + 1) / 2
        return above / (there * (count - there))


_SYMBOLS = {"length": "s", "level": "dB", "sample rate": "Hz", "band limit": "Hz"}


def in_samples(clips: Sequence[Clip], found: Sequence[Measured]) -> Iterator[Finding]:
    """Recordings with unusual samples: clipped, quiet, off centre, or with channels that are lost."""
    pairs = {clip.path: (clip, each) for clip, each in zip(clips, found)}.values()

    def where(test: Callable[[Measured], bool], note: Callable[[Measured], str]) -> list[Item]:
        return [Item((name_of(clip),), note(each)) for clip, each in pairs if test(each)]

    yield from _found(
        2,
        f"channels that cancel: their mean is {_CANCELLED:g} dB or more below them",
        where(lambda each: _cancelled(each) >= _CANCELLED, lambda each: f"{_cancelled(each):.0f} dB"),
    )
    yield from _found(
        3,
        f"dead channels: {_DEAD:g} dB or more below the loudest",
        where(
            lambda each: np.ptp(each.channel_levels or [0]) >= _DEAD,
            lambda each: ", ".join(f"{level:.0f}" for level in each.channel_levels) + " dB",
        ),
    )
    yield from _found(
        2,
        f"clipped: {_CLIPPED:.1%} or more of the samples are at full scale (beyond ±{FULL_SCALE:g})",
        where(lambda each: each.clipped >= _CLIPPED, lambda each: f"{each.clipped:.1%}"),
    )
    yield from _found(2, "silent", where(lambda each: each.silent, lambda each: ""))
    yield from _found(
        3,
        f"very quiet: an RMS below {_QUIET:g} dB re full scale",
        where(lambda each: each.level < _QUIET and not each.silent, lambda each: f"{each.level:.0f} dB"),
    )
    yield from _found(
        3,
        f"DC offset: a mean beyond {_OFFSET:.0%} of full scale and half the RMS",
        where(_is_off_centre, lambda each: f"{each.offset:+.1%}"),
    )


def in_annotations(clips: Sequence[Clip], found: Sequence[Measured]) -> Iterator[Finding]:
    """Events that begin after the end of their recording."""
    yield from _found(
        2,
        "events that begin after the end of their recording",
        (
            Item((clip.name,), f"{late[0].event} at {late[0].onset:g} s of {each.seconds:.4g} s")
            for clip, each in zip(clips, found)
            if (late := [event for event in clip.annotations or () if event.onset >= each.seconds])
        ),
    )


def unlisted(data: AnyData, listed: Sequence[Clip]) -> Iterator[Finding]:
    """Recordings in the folder that aren't `listed`, unless the data set is known to hold more."""
    if data.root is None or data.source in _HOLD_MORE:
        return
    root, names = Path(data.root), {clip.name for clip in listed}
    # Others may be links, or the recordings without labels.
    if others := [name for name in recordings_below(root) if name not in names]:
        known = {os.path.realpath(clip.path) for clip in listed}
        others = [name for name in others if os.path.realpath(root / name) not in known]
    why = "are outside the folders of classes" if data.source == "folders" else "no table names"
    yield from _found(
        3,
        f"recordings in {data.root} that {why}, so they are not read",
        (Item((name,)) for name in others),
    )


def _equal_entries(entries: Sequence[Path], rows: Sequence[int]) -> Iterator[list[int]]:
    """The places of equal cached features; only those that are equal in length and middle are read whole."""
    clips: dict[Path, list[int]] = defaultdict(list)  # parts of a recording share its entry
    for place, entry in enumerate(entries):
        clips[entry].append(place)
    first = [places[0] for places in clips.values()]

    def middle(place: int) -> bytes:
        with open(entries[place], "rb") as file:
            file.seek(os.fstat(file.fileno()).st_size // 2)
            return file.read(_MIDDLE)

    def whole(place: int) -> Hashable:
        energies = read_entry(entries[place])
        # Silent recordings of one length are equal, which means nothing.
        return hashlib.sha256(energies.tobytes()).digest() if energies.min() < energies.max() else place

    for of_one_length in _grouped(first, rows.__getitem__):
        for alike in _grouped(of_one_length, middle):
            for equal in _grouped(alike, whole):
                yield [place for each in equal for place in clips[entries[each]]]


def _grouped(places: Iterable[int], key: Callable[[int], Hashable]) -> Iterator[list[int]]:
    """Those of `places` with equal keys, in groups of at least two."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place in places:
        groups[key(place)].append(place)
    return (group for group in groups.values() if len(group) > 1)


def _in_clip(config: RunConfig, seconds: np.ndarray) -> np.ndarray:
    """The part of each length that shows in a clip: longer recordings are cropped."""
    return np.minimum(seconds, config.data.clip_seconds)


def _cancelled(found: Measured) -> float:
    """How far the mean of the channels is below them, in dB."""
    if not found.channel_levels:
        return 0.0
    return decibels(float(np.mean([10 ** (level / 10) for level in found.channel_levels]))) - found.level


def _is_off_centre(found: Measured) -> bool:
    power = 10 ** (found.level / 10)
    return abs(found.offset) > max(_OFFSET, 0.5 * power**0.5)


def _labels(clip: Clip) -> str:
    return ";".join(sorted(clip.labels)) or "none"


def _sorted(items: Iterable[tuple[float, Item]]) -> list[Item]:
    return [item for _, item in sorted(items)]


def _found(severity: int, what: str, items: Iterable[Item]) -> Iterator[Finding]:
    """The finding; none without items."""
    if found := tuple(items):
        yield Finding(severity, what, found)


def _in_order(*findings: Iterable[Finding]) -> list[Finding]:
    return sorted((finding for some in findings for finding in some), key=lambda finding: finding.severity)
