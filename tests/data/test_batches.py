"""Batches of clips whose features name the clip and the frame."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qkd_jax.config import FeatureConfig
from qkd_jax.data import batches as batches_module
from qkd_jax.data.batches import EmbeddingTargets, StepTargets, clip_batches, from_step, timed_batches
from qkd_jax.data.clips import Annotation
from qkd_jax.data.dataset import Dataset
from tests.faults import refused
from tests.recordings import numbered

FRAMES = 4
LENGTHS = [4, 5, 6, 4, 9, 7, 6, 4, 12, 5]
CLIPS = len(LENGTHS)
EVENTS = ("dog", "cat")
EVEN = FeatureConfig(win_length=160)
"""Frame f stands for f to f + 1 hundredths of a second."""
# Length in frames, kind, and events in frames; four of each clip, since Grain shuffles few clips slowly.
TIMED = 4 * [
    *((4, 0, [("dog", 1, 3)]), (5, 1, []), (6, 0, [("dog", 0, 2), ("cat", 4, 6)]), (4, 2, [])),
    *((9, 0, [("cat", 7, 8)]), (7, 1, []), (6, 2, []), (3, 0, [("dog", 1, 2)]), (12, 1, [])),
    *((5, 0, []), (10, 2, []), (4, 1, []), (2, 1, [])),
]
KIND = np.array([kind for _, kind, _ in TIMED])
TARGETS = [[kind < 2 and index % 2, kind < 2 and index % 3 > 0] for index, (_, kind, _) in enumerate(TIMED)]
TIMED_DATA = Dataset(
    names=[str(index) for index in range(len(TIMED))],
    features=numbered([length for length, _, _ in TIMED]),
    targets=np.array(TARGETS, np.float32),
    events=EVENTS,
    kind=KIND.astype(np.int8),
    annotations=[tuple(Annotation(event, a / 100, b / 100) for event, a, b in each) for *_, each in TIMED],
    seconds=[length / 100 for length, _, _ in TIMED],
)


def weak(features, targets):
    """A data set of weakly labelled clips."""
    names = [str(clip) for clip in range(len(features))]
    return Dataset(names, features, targets, ("x", "y"), np.ones(len(features), np.int8))


def batches(seed=0, batch_size=5, logits=True):
    ids = np.arange(CLIPS, dtype=np.float32)
    data = weak(numbered(LENGTHS), np.stack([ids, -ids], axis=1))
    teacher = 10 * data.targets if logits else None
    return clip_batches(data, teacher, frames=FRAMES, batch_size=batch_size, seed=seed)


def timed(sizes=(2, 2, 1), seed=0, data=TIMED_DATA, **options):
    return timed_batches(data, EVEN, frames=FRAMES, sizes=sizes, seed=seed, **options)


def clips_of(batch):
    return batch["features"][:, 0, 0].astype(int) // 100


def frames_of(batch):
    return batch["features"][:, :, 0].astype(int) % 100


def drawn(source, steps):
    """Clip and first frame of every example of the first `steps` batches, [steps, batch] each."""
    some = [source[step] for step in range(steps)]
    return np.stack([clips_of(batch) for batch in some]), np.stack([frames_of(batch)[:, 0] for batch in some])


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize("make", [batches, timed])
def test_a_batch_is_a_pure_function_of_seed_and_step(make):
    source = make()
    late = source[7]
    iterated = list(itertools.islice(from_step(make(), 0), 8))
    for step in (0, 3, 7):
        assert_equal(source[step], make()[step])
        assert_equal(source[step], iterated[step])
    assert_equal(source[7], late)


@pytest.mark.parametrize(
    ("source", "step"),
    [(batches(), 0), (batches(), 3), (batches(batch_size=1), 2), (timed(), 5), (timed((1, 0, 0)), 2)],
)
def test_reading_on_from_a_step_gives_the_same_batches(source, step):
    for index, batch in enumerate(itertools.islice(from_step(source, step), 4)):
        assert_equal(batch, source[step + index])
    assert index == 3


def test_seeds_differ_in_order_and_crops_of_clips():
    (clips, starts), (other_clips, other_starts) = (drawn(batches(seed=seed), 8) for seed in (0, 1))
    assert (clips != other_clips).any()
    sort, other_sort = (np.argsort(each, axis=None, kind="stable") for each in (clips, other_clips))
    assert (starts.ravel()[sort] != other_starts.ravel()[other_sort]).any()


def test_seeds_differ_in_order_and_crops_of_timed_events():
    # Of equal length, so that crops don't follow from the order.
    data = replace(TIMED_DATA, features=numbered([12] * len(TIMED)))
    (clips, starts), (other_clips, other_starts) = (drawn(timed(seed=seed, data=data), 8) for seed in (0, 1))
    assert (clips != other_clips).any(axis=0).all()
    assert (starts != other_starts).any(axis=0).all()


# With batches of four clips, every other epoch ends within a batch.
@pytest.mark.parametrize("batch_size", [4, 5])
def test_every_epoch_has_each_clip_once_in_a_new_order(batch_size):
    clips, _ = drawn(batches(batch_size=batch_size), 4 * CLIPS // batch_size)
    epochs = clips.reshape(4, CLIPS)
    assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(CLIPS), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 5, 3), (3, 0, 2), (0, 4, 0)])
def test_kinds_come_in_fixed_proportions_each_shuffled_and_repeated_separately(sizes):
    rows, _ = drawn(timed(sizes), 30)
    kinds = np.repeat([0, 1, 2], sizes)
    assert_array_equal(KIND[rows], np.tile(kinds, (30, 1)))
    for kind, size in enumerate(sizes):
        clips = np.flatnonzero(kind == KIND)
        passes = 30 * size // len(clips)
        order = rows[:, kinds == kind].ravel()[: passes * len(clips)].reshape(passes, len(clips))
        assert_array_equal(np.sort(order), np.tile(clips, (passes, 1)))
        assert passes < 2 or len({tuple(each) for each in order}) > 1


def test_a_kind_may_be_missing_and_kinds_of_equal_size_do_not_pair_the_same_clips_again_and_again():
    only = replace(TIMED_DATA, kind=np.zeros_like(TIMED_DATA.kind))
    batch = next(iter(from_step(timed((3, 0, 0), data=only), 4)))
    assert batch["features"].shape == (3, FRAMES, 2) and batch["has_strong"].all()
    pairs, _ = drawn(timed((1, 1, 0)), 60)
    assert len({tuple(pair) for pair in pairs}) > 50


def test_labels_and_teacher_logits_stay_with_their_clip():
    assert batches(logits=False)[0].keys() == {"features", "labels"}
    assert batches(batch_size=1)[2]["features"].shape == (1, FRAMES, 2)
    source = batches()
    for step in range(6):
        ids = clips_of(source[step])
        assert_array_equal(source[step]["labels"], np.stack([ids, -ids], axis=1))
        assert_array_equal(source[step]["teacher_logits"], 10 * source[step]["labels"])


def test_targets_of_timed_events_stay_with_their_clip_and_are_cropped_with_it():
    source = timed((2, 3, 2))
    for step in range(20):
        batch = source[step]
        clips, frames = clips_of(batch), frames_of(batch)
        assert {key: value.dtype for key, value in batch.items()} == dict.fromkeys(batch, np.float32)
        assert_array_equal(batch["has_strong"], [1, 1, 0, 0, 0, 0, 0])
        assert_array_equal(batch["has_weak"], [0, 0, 1, 1, 1, 0, 0])
        strong = np.zeros((7, FRAMES, 2))
        for row, (clip, at) in enumerate(zip(clips, frames)):
            for event, first, last in TIMED[clip][2]:
                strong[row, :, EVENTS.index(event)] += (first <= at) & (at < last)
        assert_array_equal(batch["strong"], strong)
        # An event outside the crop is not a target of a strong clip.
        assert_array_equal(batch["weak"][:2], strong[:2].max(axis=1))
        assert_array_equal(batch["weak"][2:], np.array(TARGETS)[clips[2:]])
        assert not batch["weak"][5:].any()


def test_embeddings_stay_with_their_clip():
    rows = np.random.default_rng(0).random((len(TIMED), 3, 4)).astype(np.float16)
    row_of_step = np.array([0, 0, 1, 2, 2])
    source = timed((2, 3, 2), embeddings=EmbeddingTargets(rows, row_of_step))
    for step in range(5):
        embedding = source[step]["embedding"]
        assert_array_equal(embedding, rows[clips_of(source[step])][:, row_of_step])
        assert embedding.dtype == np.float32


def test_posteriors_of_a_teacher_are_spread_over_frames_and_cropped_with_them():
    step_of_frame = np.arange(13) // 3
    by_step = 100.0 * np.arange(len(TIMED))[:, None, None] + np.arange(5)[:, None] + [0, 0.5]
    whole = np.arange(2 * len(TIMED), dtype=np.float32).reshape(-1, 2)
    teacher = StepTargets(by_step.astype(np.float32), whole, step_of_frame)
    source, plain = timed(stride=2, teacher=teacher), timed(stride=2)
    for step in range(30):
        batch = source[step]
        clips, first = clips_of(batch), frames_of(batch)[:, 0]
        # Teachers too get a shorter clip tiled, so they have steps beyond its end.
        expected = (first[:, None] + np.arange(FRAMES)) // 3 + 100 * clips[:, None]
        assert_array_equal(batch["teacher"], expected[:, :, None] + [0, 0.5])
        assert_array_equal(batch["teacher_clip"], whole[clips])
        assert_equal({key: batch[key] for key in plain[step]}, plain[step])
    short = timed((0, 1, 0), teacher=replace(teacher, step_of_frame=step_of_frame[:6]))
    with pytest.raises(ValueError, match=r"step_of_frame: expected the steps of \d+ frames, got 6"):
        list(itertools.islice(from_step(short, 0), 30))


@pytest.mark.parametrize(
    ("sizes", "kind", "count"),
    [
        ((21, 1, 1), "strongly labelled", 20),
        ((1, 21, 1), "weakly labelled", 20),
        ((1, 1, 13), "unlabelled", 12),
    ],
)
def test_a_batch_contains_at_most_all_clips_of_a_kind(sizes, kind, count):
    with refused(rf"--recipe\.\w+: expected at most {count} \({kind} training clips\), got {count + 1}"):
        timed(sizes)
    timed((20, 20, 12))


def test_crops_of_clips_begin_at_every_frame():
    source = batches()
    for step in range(4):
        features = source[step]["features"]
        assert features.shape == (5, FRAMES, 2)
        # Successive frames of one clip, both bands of the same frame.
        assert_array_equal(features, features[:, :1, :1] + np.arange(FRAMES)[:, None] + [0, 0])
    clips, starts = drawn(source, 60 * CLIPS // 5)
    for clip, length in enumerate(LENGTHS):
        # The longest has nine places: to miss one in 60 draws has odds of 1 in 100, and the seed is fixed.
        assert set(starts[clips == clip]) == set(range(length - FRAMES + 1))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_crops_of_timed_events_begin_at_every_multiple_of_the_stride(stride):
    source, starts = timed((5, 5, 3), stride=stride), {length: set() for length, _, _ in TIMED}
    for step in range(50):
        batch = source[step]
        for clip, frames in zip(clips_of(batch), frames_of(batch)):
            length = TIMED[clip][0]
            starts[length].add(int(frames[0]))
            assert_array_equal(frames, (frames[0] + np.arange(FRAMES)) % length)
    for length, at in starts.items():
        assert at == set(range(0, max(length - FRAMES, 0) + 1, stride))


def test_windows_cover_every_frame_and_the_last_ends_with_the_clip():
    starts = {3: [0], 4: [0], 5: [0, 1], 8: [0, 4], 9: [0, 4, 5], 11: [0, 4, 7], 12: [0, 4, 8]}
    assert {length: list(batches_module.window_starts(length, FRAMES)) for length in starts} == starts


def test_a_clip_shorter_than_the_input_is_tiled():
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    expected = features[[0, 1, 2, 0, 1, 2, 0]]
    assert_array_equal(batches_module.tiled(features, 7), expected)
    data = weak([features], np.ones((1, 2), np.float32))
    batch = clip_batches(data, None, frames=7, batch_size=2, seed=0)[0]
    assert_array_equal(batch["features"], [expected, expected])
