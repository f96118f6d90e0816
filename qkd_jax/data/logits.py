"""Logits in a file, keyed by clip name."""

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
    """Write `logits`, float32 [clips, events], with the clips' names; writes all or nothing."""
    with whole_file(path) as file:
        np.savez_compressed(file, names=np.array(names), events=np.array(events), logits=logits)


def read_logits(path: Path, names: Sequence[str], events: Sequence[str]) -> np.ndarray:
    """The logits of the clips `names` for `events`, in that order: float32 [clips, events].

    Raises InputError if the file can't be read, lacks a clip or an event, or holds a non-finite value.
    """
    kept_names, kept_events, logits = read_npz(path, _WHAT, **_KEYS, logits=(_NUMBERS, 2))
    _check_shape(f"{path}: expected {_WHAT}: logits", logits, (len(kept_names), len(kept_events)))
    rows, columns = _places(path, (names, events), (kept_names, kept_events))
    return _finite(path, logits[np.ix_(rows, columns)])


class StepLogits(NamedTuple):
    """Logits of clips of one length: `clip` [clips, events], and `steps` [clips, steps, events].

    `precision` [events] is the model's average precision on validation, 0 to 1, by which teachers are
    weighted.  A step reads `receptive_field` frames, and the next step begins `stride` frames later.
    """

    clip: np.ndarray
    steps: np.ndarray
    precision: np.ndarray
    receptive_field: int
    stride: int


def write_step_logits(path: Path, names: Sequence[str], events: Sequence[str], logits: StepLogits) -> None:
    """Write `logits`, as float16, with the clips' names; writes all or nothing."""
    with whole_file(path) as file:
        np.savez_compressed(
            file,
            names=np.array(names),
            events=np.array(events),
            clip=logits.clip.astype(np.float16),
            steps=logits.steps.astype(np.float16),
            precision=logits.precision,
            receptive_field=logits.receptive_field,
            stride=logits.stride,
        )


def read_step_logits(path: Path, names: Sequence[str], events: Sequence[str]) -> StepLogits:
    """The logits of the clips `names` for `events`, in that order, float32; raises InputError as
    `read_logits` does.
    """
    kept_names, kept_events, clip, steps, precision, *lengths = read_npz(
        path,
        _WHAT,
        **_KEYS,
        clip=(_NUMBERS, 2),
        steps=(_NUMBERS, 3),
        precision=(_NUMBERS, 1),
        receptive_field=("iu", 0),
        stride=("iu", 0),
    )
    size = (len(kept_names), len(kept_events))
    for name, array, shape in (
        ("clip", clip, size),
        ("steps", steps, (size[0], steps.shape[1], size[1])),
        ("precision", precision, size[1:]),
    ):
        _check_shape(f"{path}: expected logits of clips and steps: {name}", array, shape)
    receptive_field, stride = map(int, lengths)
    if min(receptive_field, stride) < 1:
        raise InputError(
            f"{path}: expected logits of clips and steps: receptive_field, stride: expected at least 1, "
            f"found {receptive_field}, {stride}"
        )
    rows, columns = _places(path, (names, events), (kept_names, kept_events))
    return StepLogits(
        _finite(path, clip[np.ix_(rows, columns)]),
        _finite(path, steps[rows][..., columns]),
        _finite(path, precision[columns]),
        receptive_field,
        stride,
    )


def _check_shape(where: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InputError(f"{where}: expected shape {shape}, found {array.shape}")


def _places(
    path: Path, wanted: Sequence[Sequence[str]], kept: Sequence[np.ndarray]
) -> tuple[list[int], list[int]]:
    """Indices of the wanted clips and events; raises InputError for those that are missing."""
    places = []
    for kind, items, known in zip(("clip", "event"), wanted, kept):
        place = {item: index for index, item in enumerate(known.tolist())}
        missing = [item for item in items if item not in place]
        if missing:
            raise InputError(
                f"{path}: expected logits for all {kind}s, found none for {len(missing)} "
                f"(first: {missing[0]!r})"
            )
        places.append([place[item] for item in items])
    rows, columns = places
    return rows, columns


def _finite(path: Path, logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # reported below
        logits = logits.astype(np.float32)
    if not np.isfinite(logits).all():
        raise InputError(f"{path}: expected finite logits, found NaN or infinity")
    return logits
