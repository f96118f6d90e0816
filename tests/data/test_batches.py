import itertools

import numpy as np
import pytest

from qkd_jax.data.batches import from_step, tiled, train_batches, window_starts
from qkd_jax.data.dataset import Dataset

FRAMES = 4
LENGTHS = [4, 5, 6, 4, 9, 7, 6, 4, 12, 5]
CLIPS = len(LENGTHS)


def data_set():
    """Ten clips whose every value says which clip and which frame it is: 100 · clip + frame."""
    features = [
        np.repeat(100.0 * clip + np.arange(length), 2).reshape(length, 2).astype(np.float32)
        for clip, length in enumerate(LENGTHS)
    ]
    ids = np.arange(CLIPS, dtype=np.float32)
    return Dataset([str(i) for i in range(CLIPS)], features, np.stack([ids, -ids], axis=1), ("x", "y"))


def batches(seed=0, batch_size=5, logits=True):
    data = data_set()
    return train_batches(
        data, 10 * data.targets if logits else None, frames=FRAMES, batch_size=batch_size, seed=seed
    )


def rows(source, steps):
    """Clip and first frame of every example of the first `steps` batches, in order."""
    first = np.concatenate([source[step]["features"][:, 0, 0] for step in range(steps)])
    return np.divmod(first.astype(int), 100)


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key])


def test_a_batch_is_a_pure_function_of_seed_and_step():
    source = batches()
    late = source[7]
    for step in (0, 3, 7):
        assert_equal(source[step], batches()[step])
    assert_equal(source[7], late)


@pytest.mark.parametrize("step", [0, 3])
def test_reading_on_from_a_step_gives_the_same_batches(step):
    source = batches()
    for index, batch in enumerate(itertools.islice(from_step(source, step), 4)):
        assert_equal(batch, source[step + index])


def test_a_batch_may_be_one_clip():
    source = batches(batch_size=1)
    for index, batch in enumerate(itertools.islice(from_step(source, 2), 3)):
        assert batch["features"].shape == (1, FRAMES, 2)
        assert_equal(batch, source[2 + index])


def test_seeds_differ_in_order_and_crops():
    clips, starts = rows(batches(seed=0), 8)
    other_clips, other_starts = rows(batches(seed=1), 8)
    assert (clips != other_clips).any()
    sort, other_sort = np.argsort(clips, kind="stable"), np.argsort(other_clips, kind="stable")
    assert (starts[sort] != other_starts[other_sort]).any()


# With four clips a batch, every other epoch ends within a batch.
@pytest.mark.parametrize("batch_size", [4, 5])
def test_every_clip_comes_once_an_epoch_in_a_new_order(batch_size):
    clips, _ = rows(batches(batch_size=batch_size), 4 * CLIPS // batch_size)
    epochs = clips.reshape(4, CLIPS)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(CLIPS), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_labels_and_teacher_logits_stay_with_their_clip():
    for step in range(6):
        batch = batches()[step]
        ids = batch["features"][:, 0, 0] // 100
        np.testing.assert_array_equal(batch["labels"], np.stack([ids, -ids], axis=1))
        np.testing.assert_array_equal(batch["teacher_logits"], 10 * batch["labels"])


def test_without_a_teacher_there_are_no_teacher_logits():
    assert batches(logits=False)[0].keys() == {"features", "labels"}


def test_crops_are_slices_of_the_clip_at_every_possible_place():
    source, epochs = batches(), 60
    for step in range(4):
        features = source[step]["features"]
        assert features.shape == (5, FRAMES, 2)
        # Successive frames of one clip, both mels of the same frame.
        np.testing.assert_array_equal(features, features[:, :1, :1] + np.arange(FRAMES)[:, None] + [0, 0])
    clips, starts = rows(source, epochs * CLIPS // 5)
    for clip, length in enumerate(LENGTHS):
        # The longest has nine places: to miss one in 60 draws has odds of 1 in 100, and the seed is fixed.
        assert set(starts[clips == clip]) == set(range(length - FRAMES + 1))


@pytest.mark.parametrize(
    ("length", "starts"),
    [(4, [0]), (5, [0, 1]), (8, [0, 4]), (9, [0, 4, 5]), (11, [0, 4, 7]), (12, [0, 4, 8])],
)
def test_windows_cover_every_frame_and_end_where_the_clip_ends(length, starts):
    assert list(window_starts(length, FRAMES)) == starts


def test_a_clip_shorter_than_the_models_see_is_repeated():
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    expected = features[[0, 1, 2, 0, 1, 2, 0]]
    assert list(window_starts(3, 7)) == [0]
    np.testing.assert_array_equal(tiled(features, 7), expected)
    data = Dataset(["a"], [features], np.ones((1, 1), np.float32), ("x",))
    batch = train_batches(data, None, frames=7, batch_size=2, seed=0)[0]
    np.testing.assert_array_equal(batch["features"], [expected, expected])
