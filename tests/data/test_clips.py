from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.data.clips import SPLITS, Clip, divide, targets


def clip(name, labels=(), group=None):
    return Clip(name=name, path=Path(name), labels=frozenset(labels), group=group or name)


def test_targets_follow_the_order_of_clips_and_events():
    clips = [clip("a", {"dog"}), clip("b"), clip("c", {"siren", "dog", "cat"})]
    np.testing.assert_array_equal(targets(clips, ("siren", "dog")), [[0, 1], [0, 0], [1, 1]])
    assert targets([], ("siren", "dog")).shape == (0, 2)
    assert targets(clips, ()).shape == (3, 0)


@given(st.lists(st.tuples(st.sets(st.sampled_from("xyz")), st.sampled_from("abcdefgh")), max_size=40))
@settings(max_examples=60, deadline=None)
def test_every_clip_has_a_split_and_no_group_is_in_two(kinds):
    clips = [clip(str(index), labels, group) for index, (labels, group) in enumerate(kinds)]
    divided = divide(clips)
    # Nothing but the split changes, nor does the order.
    assert [(c.name, c.labels, c.group) for c in divided] == [(c.name, c.labels, c.group) for c in clips]
    assert {c.split for c in divided} <= set(SPLITS)
    assert len({(c.group, c.split) for c in divided}) == len({c.group for c in clips})


def scenes(seed, largest_group):
    """400 clips in groups of 1 to `largest_group`, with a common event, a rare one and a very rare one."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(400), rng.integers(1, largest_group + 1, 400))[:400]
    odds = {"speech": 0.4, "dog": 0.1, "gunshot": 0.05}
    return [
        clip(str(index), {event for event, share in odds.items() if rng.random() < share}, f"g{group}")
        for index, group in enumerate(groups)
    ]


@pytest.mark.parametrize("largest_group", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_each_event_is_divided_70_10_20(seed, largest_group):
    clips = divide(scenes(seed, largest_group))
    for event in ("speech", "dog", "gunshot"):
        splits = [c.split for c in clips if event in c.labels]
        for split, share in zip(SPLITS, (0.7, 0.1, 0.2)):
            # Whole groups and sets of labels: a clip or two for each of the sets that hold the event.
            assert abs(splits.count(split) - share * len(splits)) <= 4, (event, split)
    splits = [c.split for c in clips]
    assert [splits.count(split) / len(clips) for split in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_shares_can_be_chosen():
    clips = divide(scenes(0, 1), shares=(0.5, 0.5, 0.0))
    splits = [c.split for c in clips]
    assert splits.count("test") == 0
    assert splits.count("train") == pytest.approx(200, abs=4)


def test_division_is_the_same_in_every_process_and_differs_by_seed():
    clips = [clip(f"clip-{index}", {"dog"} if index % 2 else ()) for index in range(20)]
    # Written down: a run that resumes must find the splits it began with.
    assert "".join(c.split[1] for c in divide(clips)) == "raeerrrrrerrerrrarrr"
    assert divide(clips, seed=1) != divide(clips)
