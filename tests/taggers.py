"""Taggers whose outputs are given, without a model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qkd_jax.data.cache import Entries
from qkd_jax.data.clips import Clip
from qkd_jax.distill.tagger import Tagger, TaggerConfig


def tagger_of(
    folder: Path,
    clips: Sequence[Clip],
    rows: Sequence[np.ndarray],
    *,
    classes: Sequence[str] = (),
    events: dict[str, tuple[str, ...]] | None = None,
    hop: float = 0.5,
    window: float = 1.0,
    output: str = "logits",
) -> Tagger:
    """A tagger that gave the `rows` [windows, …] of each of the `clips`; its files are in `folder`."""
    named = "x.txt" if classes else None
    config = TaggerConfig(file="x.onnx", classes=named, events=events or {}, output=output)
    count = len(classes) or np.shape(rows[0])[1]
    digests = [
        hashlib.md5(f"{clip.name} {np.asarray(row)}".encode()).hexdigest() for clip, row in zip(clips, rows)
    ]
    entries = Entries(folder, np.array(digests, "S32"))
    for entry, row in zip(entries, rows):
        entry.parent.mkdir(exist_ok=True, parents=True)
        np.save(entry, np.asarray(row, np.float32))
    identity = f"{count} {np.shape(rows[0])[1]} {sorted(config.events.items())}"
    return Tagger(folder / "x.toml", config, classes, count, identity, window, hop, clips, entries)
