"""Logits in a file, keyed by clip: a teacher's for its students, anyone's for looking at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qkd_jax.config import InputError
from qkd_jax.files import whole_file


def write_logits(path: Path, names: Sequence[str], events: Sequence[str], logits: np.ndarray) -> None:
    """Keep `logits` float32 [clips, events] under the clips' names; the file appears whole or not at all."""
    with whole_file(path) as file:
        np.savez_compressed(file, names=np.array(names), events=np.array(events), logits=logits)


def read_logits(path: Path, names: Sequence[str], events: Sequence[str]) -> np.ndarray:
    """The logits of the clips `names` for `events`, in that order: float32 [clips, events].

    Raises InputError if the file is no such file, lacks a clip or an event, or holds a
    non-finite value.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            kept_names, kept_events, logits = (file[key] for key in ("names", "events", "logits"))
        if logits.shape != (len(kept_names), len(kept_events)):
            raise ValueError(f"{len(kept_names)} clips, {len(kept_events)} events, logits {logits.shape}")
    except Exception as error:  # a damaged zip file raises what it likes
        raise InputError(f"{path}: expected logits keyed by clip: {error}") from None
    row = {name: index for index, name in enumerate(kept_names.tolist())}
    column = {event: index for index, event in enumerate(kept_events.tolist())}
    for kind, wanted, kept in (("clip", names, row), ("event", events, column)):
        missing = [item for item in wanted if item not in kept]
        if missing:
            raise InputError(f"{path}: no logits for {len(missing)} {kind}s, first {missing[0]!r}")
    chosen = logits[np.ix_([row[name] for name in names], [column[event] for event in events])]
    if not np.isfinite(chosen).all():
        raise InputError(f"{path}: expected finite logits, found NaN or infinity")
    return chosen.astype(np.float32)
