"""From settings to clips, whatever the source.

A source is a function from the data settings to clips; its line in `SOURCES` is all that
adding one takes.
"""

import random
from collections import Counter
from pathlib import Path

from qkd_jax.config import DataConfig, RunConfig
from qkd_jax.data.clips import Clip
from qkd_jax.data.features import cached_features
from qkd_jax.data.sources.audioset import read_audioset
from qkd_jax.data.sources.demo import read_demo
from qkd_jax.data.sources.desed import read_desed
from qkd_jax.data.sources.folds import read_esc50, read_urbansound8k
from qkd_jax.data.sources.manifest import read_manifest
from qkd_jax.errors import InputError

SOURCES = {
    "manifest": read_manifest,
    "audioset": read_audioset,
    "esc50": read_esc50,
    "urbansound8k": read_urbansound8k,
    "desed": read_desed,
    "demo": read_demo,
}
_LISTED = 20


def read_clips(data: DataConfig) -> list[Clip]:
    """The clips of `data`, their split None where the source has none; `data.negatives` without an event.

    Raises InputError.
    """
    if data.source not in SOURCES:
        raise InputError(f"data.source: expected one of {', '.join(SOURCES)}, got {data.source!r}")
    clips = SOURCES[data.source](data)
    for name, count in Counter(clip.name for clip in clips).most_common(1):
        if count > 1:
            raise InputError(f"{data.root}: expected each recording once, found {name} {count} times")
    for clip in clips:
        # As a file system may have them, but no text file.
        if clip.name.encode(errors="ignore").decode() != clip.name:
            raise InputError(f"{data.root}: expected names in UTF-8, found {clip.name!r}")
    counts = Counter(label for clip in clips for label in clip.labels)
    for event in data.events:
        if event not in counts:
            known = ", ".join(f"{label} ({count})" for label, count in counts.most_common(_LISTED)) or "none"
            raise InputError(f"data.events: no recording has the label {event!r}; there are {known}")
    if data.negatives is None:
        return clips
    labelled = [clip for clip in clips if clip.labelled]
    negatives = {clip.name for clip in labelled if clip.labels.isdisjoint(data.events or counts)}
    kept = random.Random(0).sample(sorted(negatives), min(data.negatives, len(negatives)))
    left_out = negatives.difference(kept)
    return [clip for clip in clips if clip.name not in left_out]


def usable_clips(config: RunConfig | RunConfig, cache: Path) -> tuple[list[Clip], list[str]]:
    """The clips of `config.data` that can be read, and what is wrong with the others.

    Their features are in `cache` then.  Raises InputError if there are others, unless
    `config.data.skip_bad`.
    """
    clips = read_clips(config.data)
    _, bad = cached_features(clips, config.features, cache)
    if len(bad) == len(clips):
        raise InputError(*list_bad(bad, len(clips)))
    if bad and not config.data.skip_bad:
        raise InputError(*list_bad(bad, len(clips)), "--data.skip-bad leaves them out")
    if bad:
        print("left out:", "\n".join(list_bad(bad, len(clips))), flush=True)
    return [clip for clip in clips if clip.name not in bad], list(bad.values())


def list_bad(bad: dict[str, str], count: int) -> list[str]:
    """Which of `count` recordings can't be used, and why: a line each, of many the first."""
    more = [f"and {len(bad) - _LISTED} more"] if len(bad) > _LISTED else []
    lines = [*list(bad.values())[:_LISTED], *more]
    return [f"{len(bad)} of {count} recordings can't be used:", *(f"  {line}" for line in lines)]
