"""From the recordings that can be used to the clips of a run: its events, splits and parts."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

from qkd_jax.config import AnyData, RunConfig, with_data
from qkd_jax.data.clip_list import with_fewer_negatives
from qkd_jax.data.clips import SPLITS, Clip, with_splits
from qkd_jax.data.dataset import check_split
from qkd_jax.data.parts import cut
from qkd_jax.errors import InputError, noted


def prepared(
    config: RunConfig,
    clips: Sequence[Clip],
    frames: Mapping[str, int],
    errors: list[InputError] | None = None,
) -> tuple[RunConfig, list[Clip]]:
    """`config` with its events, and `clips` in splits, of which long ones are `cut`.

    `frames` has the lengths of their features by name.  Raises InputError for what a run refuses of them;
    if `errors` are given, they get those with which a check can go on.
    """
    events = config.data.events or tuple(sorted(set().union(*(clip.labels for clip in clips))))
    if not events:
        raise InputError(f"{config.data.root}: expected recordings with labels, found none")
    config = with_data(config, events=events)
    cut_long = partial(cut, data=config.data, features=config.features, frames=frames, timed=config.timed)
    divided = list(clips)
    if not config.timed:  # divide by parts, since recordings may differ in length
        divided = with_fewer_negatives(cut_long(divided), config.data)
    with noted(errors):
        divided = with_splits(divided, events)
    if config.timed:
        divided = with_fewer_negatives(cut_long(divided), config.data)
    for split in SPLITS:
        with noted(errors):
            check_split(config.data, divided, split)
    return config, divided


def check_splits(data: AnyData, listed: Sequence[Clip]) -> None:
    """Raise InputError for what a run refuses of the splits of its `listed_clips`, read or not."""
    events = data.events or tuple(sorted(set().union(*(clip.labels for clip in listed))))
    divided = with_splits(listed, events)
    for split in SPLITS:
        check_split(dataclasses.replace(data, events=events), divided, split)
