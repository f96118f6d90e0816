"""The page of a check: what was found in the recordings, and pictures of each event's."""

import base64
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.audio.reading import audio_blocks
from qkd_jax.config import RunConfig
from qkd_jax.data.check import Finding, extent, name_of
from qkd_jax.data.clips import Clip
from qkd_jax.data.measure import Measured
from qkd_jax.evaluation.html import link, write_page
from qkd_jax.system.progress import track

_PICTURES = 6
"""Per event."""
_MOST_EVENTS = 60
"""With pictures, so that a page of hundreds of events still opens."""
_LISTED = 50
_COLUMNS, _SHADES = 400, 32
_RANGE = np.log(10.0) * 6
"""60 dB, in the natural logarithm of an energy."""


def write_check_page(
    path: Path,
    config: RunConfig,
    *,
    clips: Sequence[Clip],
    found: Sequence[Measured],
    findings: Sequence[Finding],
    errors: Sequence[str],
    table: Sequence[tuple[str, Sequence[str]]],
    facts: dict[str, str],
) -> None:
    """Write the check of `config` to `path`, an HTML file; equal arguments give equal bytes.

    `clips` can be used, and `found` are their measurements.  `errors` would stop a run.  `table` has the
    cells of each row: train, valid, test and all; `facts` are further lines.  Reads the recordings that it
    shows.
    """
    root = Path(config.data.root or "").absolute()
    paths = {name: clip.path for clip in clips for name in (clip.name, name_of(clip))}
    chosen = list(_examples(config, clips))
    measured = dict(zip(clips, found))
    shown = dict.fromkeys(clip for _, some in chosen for clip in some)
    seconds = config.data.clip_seconds
    longest = max((min(_length(clip, measured[clip]), seconds) for clip in shown), default=seconds)
    cards = {
        clip: _card(config, clip, measured[clip], longest) for clip in track(shown, len(shown), "drawing")
    }
    write_page(
        path,
        "check.html.jinja",
        title=config.name,
        root=str(root),
        table=table,
        facts=facts,
        errors=errors,
        findings=[
            {
                "severity": finding.severity,
                "what": finding.what,
                "count": len(finding.items),
                "items": [
                    ([(name, link(name, paths.get(name, root / name))) for name in item.names], item.note)
                    for item in finding.items[:_LISTED]
                ],
            }
            for finding in findings
        ],
        groups=[(title, [cards[clip] for clip in some]) for title, some in chosen],
        omitted=max(0, len(config.data.events) - _MOST_EVENTS),
        features=config.features,
        longest=longest,
        timed=any(card["bars"] for card in cards.values()),
    )


def _examples(config: RunConfig, clips: Sequence[Clip]) -> Iterator[tuple[str, list[Clip]]]:
    """Some clips of each event, and of none, drawn at random."""
    events = config.data.events
    draw = random.Random(0)

    def some(having: list[Clip]) -> list[Clip]:
        return draw.sample(having, min(_PICTURES, len(having)))

    for event in events[:_MOST_EVENTS]:
        yield event, some([clip for clip in clips if event in clip.labels])
    if negatives := some([clip for clip in clips if clip.labelled and clip.labels.isdisjoint(events)]):
        yield "none of the events", negatives
    if unlabelled := some([clip for clip in clips if not clip.labelled]):
        yield "unlabelled", unlabelled


def _length(clip: Clip, found: Measured) -> float:
    start, end = extent(clip, found)
    return end - start


def _card(config: RunConfig, clip: Clip, found: Measured, longest: float) -> dict[str, Any]:
    """A recording as the page shows it; its picture is as wide as its share of `longest`, in seconds."""
    start, end = extent(clip, found)
    shown = min(end - start, longest)
    return {
        "name": clip.name,
        "uri": link(clip.name, clip.path),
        "labels": sorted(clip.labels),
        "split": clip.split,
        "seconds": end - start,
        "level": found.level,
        "rate": found.rate,
        "width": 100 * shown / longest,
        "picture": _picture(config, clip, start, shown),
        "bars": [
            (
                each.event,
                100 * each.onset / shown,
                100 * (min(each.offset, shown) - each.onset) / shown,
            )
            for each in clip.annotations or ()
            if each.onset < shown
        ],
    }


def _picture(config: RunConfig, clip: Clip, start: float, seconds: float) -> str:
    """Log-mel energies as the data URI of a PNG: time from left to right, 60 dB from dark to bright."""
    from matplotlib.image import imsave

    rate = config.features.sample_rate
    first, last = round(start * rate), round((start + seconds) * rate)
    blocks, count = [], 0
    for block in audio_blocks(clip.path, rate, channel=config.data.channel):
        blocks.append(block)
        count += len(block)
        if count >= last:
            break
    energies = log_mel(config.features, np.concatenate(blocks)[first:last])
    if len(energies) > _COLUMNS:
        energies = np.stack([part.mean(axis=0) for part in np.array_split(energies, _COLUMNS)])
    shades = np.clip((energies - energies.max()) / _RANGE + 1, 0, 1)
    buffer = io.BytesIO()
    # Few shades make a small file.
    imsave(
        buffer,
        np.rint(shades.T * (_SHADES - 1)),
        vmin=0,
        vmax=_SHADES - 1,
        cmap="magma",
        origin="lower",
        format="png",
    )
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
