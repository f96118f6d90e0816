"""Logits in a file, keyed by clip: a teacher's for its students, anyone's for looking at."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qkd_jax.data.arrays import read_npz
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

_WHAT = "logits keyed by clip"
_NUMBERS = "fiu"
_KEYS = {"names": ("U", 1), "events": ("U", 1)}


def write_logits(path: Path, names: Sequence[str], events: Sequence[str], logits: np.ndarray) -> None:
    """Keep `logits` float32 [clips, events] under the clips' names; the file appears whole or not at all."""
    with whole_file(path) as file:
        np.savez_compressed(file, names=np.array(names), events=np.array(events), logits=logits)


def read_logits(path: Path, names: Sequence[str], events: Sequence[str]) -> np.ndarray:
    """The logits of the clips `names` for `events`, in that order: float32 [clips, events].

    Raises InputError if the file is no such file, lacks a clip or an event, or holds a
    non-finite value.
    """
    kept_names, kept_events, logits = read_npz(path, _WHAT, **_KEYS, logits=(_NUMBERS, 2))
    if logits.shape != (len(kept_names), len(kept_events)):
        raise InputError(
            f"{path}: expected logits keyed by clip: {len(kept_names)} clips, {len(kept_events)} events, "
            f"logits {logits.shape}"
        )
    rows, columns = _places(path, (names, events), (kept_names, kept_events))
    return _finite(path, logits[np.ix_(rows, columns)])


class StepLogits(NamedTuple):
    """What a model says of clips of one length: how sure it is of each event, and when.

    `clip` [clips, events] and `frames` [clips, steps, events] are logits; `precision` [events] is its average
    precision on validation, 0 to 1, by which teachers weigh; `span` is its settings'.
    """

    clip: np.ndarray
    frames: np.ndarray
    precision: np.ndarray
    span: tuple[int, int]


def write_step_logits(path: Path, names: Sequence[str], events: Sequence[str], said: StepLogits) -> None:
    """Keep `said` under the clips' names, logits as float16; the file appears whole or not at all."""
    with whole_file(path) as file:
        np.savez_compressed(
            file,
            names=np.array(names),
            events=np.array(events),
            clip=said.clip.astype(np.float16),
            frames=said.frames.astype(np.float16),
            precision=said.precision,
            span=np.array(said.span),
        )


def read_step_logits(path: Path, names: Sequence[str], events: Sequence[str]) -> StepLogits:
    """What the file says of the clips `names` and of `events`, in that order, float32; raises InputError as
    `read_logits` does.
    """
    kept_names, kept_events, clip, frames, precision, span = read_npz(
        path,
        _WHAT,
        **_KEYS,
        clip=(_NUMBERS, 2),
        frames=(_NUMBERS, 3),
        precision=(_NUMBERS, 1),
        span=("iu", 1),
    )
    size = (len(kept_names), len(kept_events))
    shapes = (clip.shape, (*frames.shape[:1], *frames.shape[2:]), (*size[:1], *precision.shape), span.shape)
    if shapes != (size, size, size, (2,)) or span.min() < 1:
        raise InputError(
            f"{path}: expected logits of clips and steps: {size[0]} clips, {size[1]} events, found "
            f"{clip.shape}, {frames.shape}, precision {precision.shape}, span {span.tolist()[:3]}"
        )
    rows, columns = _places(path, (names, events), (kept_names, kept_events))
    read, hop = map(int, span)
    return StepLogits(
        _finite(path, clip[np.ix_(rows, columns)]),
        _finite(path, frames[rows][..., columns]),
        _finite(path, precision[columns]),
        (read, hop),
    )


def _places(
    path: Path, wanted: Sequence[Sequence[str]], kept: Sequence[np.ndarray]
) -> tuple[list[int], list[int]]:
    """Where the wanted clips and events are among those kept; raises InputError for what is not."""
    places = []
    for kind, items, known in zip(("clip", "event"), wanted, kept):
        place = {item: index for index, item in enumerate(known.tolist())}
        missing = [item for item in items if item not in place]
        if missing:
            raise InputError(f"{path}: no logits for {len(missing)} {kind}s, first {missing[0]!r}")
        places.append([place[item] for item in items])
    rows, columns = places
    return rows, columns


def _finite(path: Path, logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # named below
        logits = logits.astype(np.float32)
    if not np.isfinite(logits).all():
        raise InputError(f"{path}: expected finite logits, found NaN or infinity")
    return logits
