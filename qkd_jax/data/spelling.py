"""One spelling for names of recordings and labels that tables, disks and settings spell differently."""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from qkd_jax.data.clips import Annotation, Clip
from qkd_jax.data.tables import inside, plain
from qkd_jax.errors import printable

Find = Callable[[Path, str], str | None]


def names_on_disk(root: Path) -> Callable[[str], str]:
    """The function that maps a path in a table to the one that its recording has in `root`.

    If there is no recording of a name, backslashes in it separate folders, as in Windows, and a recording
    whose name is the same in composed letters (Unicode's NFC) is taken.
    """
    find = _finder(plain)

    def on_disk(name: str) -> str:
        # A name in ASCII without backslashes has one spelling.
        if (name.isascii() and "\\" not in name) or os.path.exists(root / name):
            return name
        name = inside(name.replace("\\", "/"), name)
        return find(root, name) or name

    return on_disk


def with_names_on_disk(clips: Iterable[Clip]) -> list[Clip]:
    """`clips` with the names that their recordings have on disk, by `names_on_disk`."""
    on_disk = functools.cache(names_on_disk)

    def named(clip: Clip) -> Clip:
        if (name := on_disk(clip.root)(clip.name)) == clip.name:
            return clip
        return dataclasses.replace(clip, name=name, group=name if clip.group == clip.name else clip.group)

    return [named(clip) for clip in clips]


def similar_names(clips: Iterable[Clip]) -> dict[str, str]:
    """By name of the clip: a file on disk whose name differs in case, blanks at its ends or encoding."""
    find = _finder(_folded)
    found = {clip.name: find(clip.root, clip.name) for clip in clips if not os.path.exists(clip.path)}
    return {name: other for name, other in found.items() if other and other != name}


def _folded(name: str) -> str:
    if not is_utf8(name):  # in most cases Latin-1
        name = os.fsencode(name).decode("latin-1")
    return plain(name).casefold()


def is_utf8(name: str) -> bool:
    """Whether a name is text; other bytes in names on disk are surrogates in Python."""
    return name.encode(errors="ignore").decode() == name


def _finder(key: Callable[[str], str]) -> Find:
    """The function that finds the path within a root that is equal by `key`; lists each folder once."""

    @functools.cache
    def names(folder: Path) -> dict[str, str]:
        try:
            return {key(name): name for name in sorted(os.listdir(folder), reverse=True)}
        except (OSError, ValueError):
            return {}

    def find(root: Path, name: str) -> str | None:
        found: list[str] = []
        for part in name.split("/"):
            actual = names(root.joinpath(*found)).get(key(part))
            if actual is None:
                return None
            found.append(actual)
        return "/".join(found)

    return find


def with_one_spelling(clips: Sequence[Clip], events: Sequence[str]) -> list[Clip]:
    """`clips` with `plain` labels, in one spelling if several differ only in case; a printed line says so.

    That is the one in `events`, or else the most frequent.
    """
    written = Counter(label for clip in clips for label in clip.labels)
    counts = Counter[str]()
    for label, count in written.items():
        counts[plain(label)] += count
    by_count = sorted(counts, key=lambda label: (counts[label], label))
    chosen = {label.casefold(): label for label in by_count}
    chosen |= {plain(event).casefold(): event for event in events}
    exact = {plain(event): event for event in events}
    spelled = {label: exact.get(label) or chosen[label.casefold()] for label in counts}
    for label, other in spelled.items():
        if label != plain(other):
            print(printable(f"labels: {label} ({counts[label]}) is read as {other}"), flush=True)
    if all(label == spelled.get(label) for label in written):
        return list(clips)

    def one(label: str) -> str:
        return spelled[plain(label)]

    @functools.cache  # clips with the same labels share one set
    def all_of(labels: frozenset[str]) -> frozenset[str]:
        return frozenset(filter(None, map(one, labels)))

    def respelled(clip: Clip) -> Clip:
        timed = clip.annotations and tuple(
            Annotation(one(each.event), *each[1:]) for each in clip.annotations
        )
        return dataclasses.replace(clip, labels=all_of(clip.labels), annotations=timed)

    return [respelled(clip) for clip in clips]
