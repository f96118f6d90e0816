"""Targets by frame against exact fractions, a split from files, batches whose values say what they are."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.config import DataConfig, FeatureConfig, RunConfig
from qkd_jax.data.batches import from_step
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import Span
from qkd_jax.data.features import recording_features
from qkd_jax.data.timed import SedDataset, frame_targets, load_sed_split, sed_batches
from qkd_jax.errors import InputError

EVENTS = ("dog", "cat")
# Frame f stands for f to f + 1 hundredths of a second.
EVEN = FeatureConfig(win_length=160)
DCASE = FeatureConfig(win_length=2048, hop_length=256, n_fft=2048)
APART = FeatureConfig(sample_rate=8000, win_length=100, hop_length=160, fmax=4000.0)

times = st.tuples(st.integers(0, 70_000), st.integers(1, 30_000))
spans = st.lists(st.tuples(st.sampled_from(["dog", "cat", "cow"]), times), max_size=4)


@settings(deadline=None, max_examples=200)
@given(spans, st.integers(0, 70), st.sampled_from([FeatureConfig(), EVEN, DCASE, APART]))
def test_a_frame_holds_the_events_that_overlap_its_time(spans, frames, features):
    """Onsets and lengths in hundredths of a millisecond."""
    expected = np.zeros((frames, 2))
    for frame, (event, (onset, length)) in itertools.product(range(frames), spans):
        begin = features.hop_length * frame + Fraction(features.win_length - features.hop_length, 2)
        begin, end = begin / features.sample_rate, (begin + features.hop_length) / features.sample_rate
        if event in EVENTS and Fraction(onset, 100_000) < end and Fraction(onset + length, 100_000) > begin:
            expected[frame, EVENTS.index(event)] = 1
    given = [Span(event, onset / 100_000, (onset + length) / 100_000) for event, (onset, length) in spans]
    found = frame_targets(given, EVENTS, frames, features)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("onset", "offset", "marked"),
    [
        (0.0175, 0.0275, [1]),  # all of a frame, and no more: 200 ± 80 samples are 7.5 to 17.5 ms
        (0.0174, 0.0276, [0, 1, 2]),
        (0.02, 0.0201, [1]),
        (0.0, 0.0075, []),  # over before the first frame
        (0.0, 0.0076, [0]),
        (0.03, 9.0, [2, 3, 4]),
        (0.06, 9.0, []),  # begins behind the last frame
        (3600.0, 3601.0, []),
    ],
)
def test_frames_of_the_default_front_end(onset, offset, marked):
    found = frame_targets([Span("cat", onset, offset)], EVENTS, 5, FeatureConfig())
    np.testing.assert_array_equal(found, np.stack([np.zeros(5), np.isin(np.arange(5), marked)], axis=1))


def test_an_event_that_fills_a_frame_marks_no_other():
    """DCASE's frames are 16 ms each from 56 ms on; in floats 8.024 s are fewer than 128384 samples."""
    for frame in range(620):
        span = Span("dog", (56 + 16 * frame) / 1000, (72 + 16 * frame) / 1000)
        marked = frame_targets([span], ("dog",), 621, DCASE)
        np.testing.assert_array_equal(np.flatnonzero(marked), [frame])


# A clip's length in frames, its kind, and its events in frames; four of each, as Grain shuffles few slowly.
CLIPS = 4 * [
    (4, 0, [("dog", 1, 3)]),
    (5, 1, []),
    (6, 0, [("dog", 0, 2), ("cat", 4, 6)]),
    (4, 2, []),
    (9, 0, [("cat", 7, 8)]),
    (7, 1, []),
    (6, 2, []),
    (3, 0, [("dog", 1, 2)]),
    (12, 1, []),
    (5, 0, []),
    (10, 2, []),
    (4, 1, []),
    (2, 1, []),
]
KIND = np.array([kind for _, kind, _ in CLIPS])
TARGETS = [[kind < 2 and index % 2, kind < 2 and index % 3 > 0] for index, (_, kind, _) in enumerate(CLIPS)]
FRAMES = 4


@pytest.fixture(scope="session")
def data():
    """Features say which clip and which frame it is: 100 · clip + frame."""
    return SedDataset(
        names=[str(index) for index in range(len(CLIPS))],
        features=[
            np.repeat(100.0 * clip + np.arange(length), 2).reshape(length, 2).astype(np.float32)
            for clip, (length, _, _) in enumerate(CLIPS)
        ],
        targets=np.array(TARGETS, np.float32),
        kind=KIND.astype(np.int8),
        spans=[
            tuple(Span(event, first / 100, last / 100) for event, first, last in spans)
            for _, _, spans in CLIPS
        ],
        seconds=[length / 100 for length, _, _ in CLIPS],
        events=EVENTS,
        front_end=EVEN,
    )


def batches(data, sizes=(2, 2, 1), seed=0, frames=FRAMES, **options):
    return sed_batches(data, frames=frames, sizes=sizes, seed=seed, **options)


def clips_of(batch):
    return batch["features"][:, 0, 0].astype(int) // 100


def frames_of(batch):
    return batch["features"][:, :, 0].astype(int) % 100


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key])


def test_a_batch_is_a_pure_function_of_seed_and_step(data):
    source = batches(data)
    late = source[7]
    iterated = list(itertools.islice(from_step(batches(data), 0), 8))
    for step in (0, 3, 7):
        assert_equal(source[step], batches(data)[step])
        assert_equal(source[step], iterated[step])
    assert_equal(source[7], late)
    for index, batch in enumerate(itertools.islice(from_step(source, 5), 3)):
        assert_equal(batch, source[5 + index])


def test_seeds_differ_in_order_and_crops(data):
    # Of one length, so that crops don't follow from the order.
    alike = [100.0 * clip + np.arange(12)[:, None] + [0, 0] for clip in range(len(CLIPS))]
    data = dataclasses.replace(data, features=alike)

    def drawn(seed):
        some = [batches(data, seed=seed)[step] for step in range(8)]
        return np.stack([clips_of(batch) for batch in some]), np.stack([frames_of(batch) for batch in some])

    (clips, frames), (others, other_frames) = drawn(0), drawn(1)
    assert (clips != others).any(axis=0).all()
    assert (frames != other_frames).any(axis=(0, 2)).all()


@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 5, 3), (3, 0, 2), (0, 4, 0)])
def test_kinds_come_in_fixed_proportions_each_in_passes_of_its_own(data, sizes):
    source = batches(data, sizes)
    rows = np.stack([clips_of(source[step]) for step in range(30)])
    kinds = np.repeat([0, 1, 2], sizes)
    np.testing.assert_array_equal(KIND[rows], np.tile(kinds, (30, 1)))
    for kind, size in enumerate(sizes):
        clips = np.flatnonzero(kind == KIND)
        passes = 30 * size // len(clips)
        order = rows[:, kinds == kind].ravel()[: passes * len(clips)].reshape(passes, len(clips))
        np.testing.assert_array_equal(np.sort(order), np.tile(clips, (passes, 1)))
        assert passes < 2 or len({tuple(each) for each in order}) > 1


def test_a_kind_of_which_nothing_is_wanted_need_not_be_there(data):
    only = dataclasses.replace(data, kind=np.zeros_like(data.kind))
    batch = next(iter(from_step(batches(only, (3, 0, 0)), 4)))
    assert batch["features"].shape == (3, FRAMES, 2) and batch["has_strong"].all()


def test_clips_of_two_kinds_do_not_meet_again_and_again(data):
    """There are as many strong clips as weak ones."""
    source = batches(data, (1, 1, 0))
    pairs = {tuple(clips_of(source[step])) for step in range(60)}
    assert len(pairs) > 50


def test_what_is_known_of_a_clip_comes_with_it(data):
    for step in range(20):
        batch = batches(data, (2, 3, 2))[step]
        clips, frames = clips_of(batch), frames_of(batch)
        assert {key: value.dtype for key, value in batch.items()} == dict.fromkeys(batch, np.float32)
        np.testing.assert_array_equal(batch["has_strong"], [1, 1, 0, 0, 0, 0, 0])
        np.testing.assert_array_equal(batch["has_weak"], [0, 0, 1, 1, 1, 0, 0])
        strong = np.zeros((7, FRAMES, 2))
        for row, (clip, at) in enumerate(zip(clips, frames)):
            for event, first, last in CLIPS[clip][2]:
                strong[row, :, EVENTS.index(event)] += (first <= at) & (at < last)
        np.testing.assert_array_equal(batch["strong"], strong)
        # An event that a crop leaves out is no event of a strong clip any more.
        np.testing.assert_array_equal(batch["weak"][:2], strong[:2].max(axis=1))
        np.testing.assert_array_equal(batch["weak"][2:], np.array(TARGETS)[clips[2:]])
        assert not batch["weak"][5:].any()


def test_embeddings_come_with_their_clip(data):
    rows, row_of_step = np.random.default_rng(0).random((len(data.names), 3, 4)), np.array([0, 0, 1, 2, 2])
    source = batches(data, (2, 3, 2), embeddings=rows.astype(np.float16), row_of_step=row_of_step)
    for step in range(5):
        expected = rows.astype(np.float16)[clips_of(source[step])][:, row_of_step]
        np.testing.assert_array_equal(source[step]["embedding"], expected)
        assert source[step]["embedding"].dtype == np.float32


@pytest.mark.parametrize("hop", [1, 2, 3])
def test_crops_begin_at_every_multiple_of_hop(data, hop):
    source, starts = batches(data, (5, 5, 3), hop=hop), {length: set() for length, _, _ in CLIPS}
    for step in range(50):
        batch = source[step]
        for clip, frames in zip(clips_of(batch), frames_of(batch)):
            length = CLIPS[clip][0]
            starts[length].add(int(frames[0]))
            np.testing.assert_array_equal(frames, (frames[0] + np.arange(FRAMES)) % length)
    for length, found in starts.items():
        assert found == set(range(0, max(length - FRAMES, 0) + 1, hop))


def test_a_teacher_is_spread_over_frames_and_cropped_with_them(data):
    steps = np.arange(13) // 3
    said = 100.0 * np.arange(len(CLIPS))[:, None, None] + np.arange(5)[:, None] + [0, 0.5]
    whole = np.arange(2 * len(CLIPS), dtype=np.float32).reshape(-1, 2)
    teacher = {"teacher": said.astype(np.float32), "teacher_clip": whole, "step_of_frames": steps}
    source, plain = batches(data, hop=2, **teacher), batches(data, hop=2)
    for step in range(30):
        batch = source[step]
        clips, first = clips_of(batch), frames_of(batch)[:, 0]
        # A clip of fewer frames is heard tiled by teachers too, so they say more of it than it is long.
        expected = (first[:, None] + np.arange(FRAMES)) // 3 + 100 * clips[:, None]
        np.testing.assert_array_equal(batch["teacher"], expected[:, :, None] + [0, 0.5])
        np.testing.assert_array_equal(batch["teacher_clip"], whole[clips])
        assert_equal({key: batch[key] for key in plain[step]}, plain[step])
    alone = batches(data, teacher_clip=whole)[0]
    assert "teacher" not in alone
    np.testing.assert_array_equal(alone["teacher_clip"], whole[clips_of(alone)])
    short = batches(data, (0, 1, 0), **(teacher | {"step_of_frames": steps[:6]}))
    with pytest.raises(ValueError, match=r"step_of_frames: expected the steps of \d+ frames, got 6"):
        list(itertools.islice(from_step(short, 0), 30))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((21, 1, 1), r"train\.strong: expected at most the 20 strong clips that there are in a step, got 21"),
        ((1, 21, 1), r"train\.weak: expected at most the 20 weak clips .*, got 21"),
        ((1, 1, 13), r"train\.unlabelled: expected at most the 12 unlabelled clips .*, got 13"),
    ],
)
def test_a_batch_takes_no_more_clips_than_there_are(data, sizes, said):
    with pytest.raises(InputError, match=said):
        batches(data, sizes)
    batches(data, (20, 20, 12))


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A set like DESED: three seconds of noise a split, and a dog, a cat, both and a cow in it."""
    root = tmp_path_factory.mktemp("set")
    for number, split in enumerate(("train", "valid", "test")):
        (root / split / "audio").mkdir(parents=True)
        for index in range(5):
            noise = np.random.default_rng([number, index]).normal(0, 0.1, 8000 + 1000 * index)
            soundfile.write(root / f"{split}/audio/{index}.wav", noise, 16_000)
        rows = ["0.wav\t0.1\t0.2\tdog", "1.wav\t0\t0.25\tcat", "2.wav\t0.3\t0.5\tdog"]
        rows += ["2.wav\t0.125\t0.45\tcat", "3.wav\t0.1\t0.2\tcow"]
        (root / split / "strong.tsv").write_text("filename\tonset\toffset\tevent_label\n" + "\n".join(rows))
        (root / split / "durations.tsv").write_text("filename\tduration\n4.wav\t1\n")
    return root


@pytest.fixture
def config(root):
    return RunConfig(
        features=FeatureConfig(n_mels=8),
        data=DataConfig(source="desed", root=str(root), events=("cat", "dog"), strong=2, weak=1),
    )


def test_a_split_from_files(config, root, tmp_path):
    clips = read_clips(config.data)
    train = load_sed_split(config, clips, "train", tmp_path)
    assert train.names == [f"train/audio/{index}.wav" for index in range(5)]
    assert train.events == ("cat", "dog")
    np.testing.assert_array_equal(train.targets, [[0, 1], [1, 0], [1, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(train.kind, [0, 0, 1, 2, 2])
    assert train.targets.dtype == np.float32 and train.kind.dtype == np.int8
    assert train.spans == [(("dog", 0.1, 0.2),), (("cat", 0, 0.25),), (), (), ()]
    assert train.seconds == [0.5, 0.5625, 0.625, 0.6875, 0.75]
    for index, name in enumerate(train.names):
        features = recording_features(root / name, config.features)
        np.testing.assert_array_equal(train.features[index], features)
        np.testing.assert_array_equal(
            train.strong(index),
            frame_targets(train.spans[index], train.events, len(features), config.features),
        )
    # 0.1 to 0.2 s in frames around 12.5, 22.5, ... ms.
    np.testing.assert_array_equal(np.flatnonzero(train.strong(0)[:, 1]), range(9, 20))
    assert not train.strong(0)[:, 0].any()

    # The labels of others are whole, and what is no event is left out.
    valid = load_sed_split(config, clips, "valid", tmp_path)
    np.testing.assert_array_equal(valid.kind, 0)
    assert valid.spans[2:] == [(("dog", 0.3, 0.5), ("cat", 0.125, 0.45)), (), ()]

    batch = sed_batches(train, frames=60, sizes=(2, 1, 2), seed=0)[0]
    np.testing.assert_array_equal(batch["strong"][2:], 0)
    np.testing.assert_array_equal(batch["weak"][2:], [[1, 1], [0, 0], [0, 0]])


def test_what_cannot_serve_is_named(config, root, tmp_path):
    clips = read_clips(config.data)
    weak = [
        dataclasses.replace(clip, spans=None) if clip.name == "test/audio/1.wav" else clip for clip in clips
    ]
    with pytest.raises(
        InputError,
        match=rf"{root}: expected onsets and offsets of all clips of split 'test', found none of test/audio",
    ):
        load_sed_split(config, weak, "test", tmp_path)
    gone = [dataclasses.replace(clip, name=f"gone/{clip.name}") for clip in clips]
    with pytest.raises(InputError, match=r"5 of 5 recordings can't be used:\n.*gone/.*: not there"):
        load_sed_split(config, gone, "train", tmp_path)
    nothing = [dataclasses.replace(clip, labels=clip.labels - {"dog"}) for clip in clips]
    # The two unlabelled ones are no negatives.
    with pytest.raises(InputError, match=r"event 'dog': expected positive and negative .* 0 positive of 3"):
        load_sed_split(config, nothing, "train", tmp_path)
