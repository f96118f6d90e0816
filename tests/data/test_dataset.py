"""Frame targets against exact fractions, and splits read from files."""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from qkd_jax.config import DESEDData, EventRecipe, FeatureConfig, ManifestData, RunConfig
from qkd_jax.data.batches import timed_batches
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import Annotation
from qkd_jax.data.dataset import check_split, frame_targets, load_split
from qkd_jax.data.features import recording_features
from tests.faults import refused
from tests.recordings import clip, noise, record

CONFIG = RunConfig(
    features=FeatureConfig(n_mels=16),
    data=ManifestData(root="recordings", clip_seconds=0.5, events=("bell", "knock")),
)
EVENTS = ("dog", "cat")
EVEN = FeatureConfig(win_length=160)
"""Frame f stands for f to f + 1 hundredths of a second."""
DCASE = FeatureConfig(win_length=2048, hop_length=256, n_fft=2048)
APART = FeatureConfig(sample_rate=8000, win_length=100, hop_length=160, fmax=4000.0)

times = st.tuples(st.integers(0, 70_000), st.integers(1, 30_000))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["dog", "cat", "cow"]), times), max_size=4),
    st.integers(0, 70),
    st.sampled_from([FeatureConfig(), EVEN, DCASE, APART]),
)
def test_a_frame_has_the_events_that_overlap_its_time(events, frames, features):
    """Onsets and lengths in hundredths of a millisecond."""
    expected = np.zeros((frames, 2))
    for frame, (event, (onset, length)) in itertools.product(range(frames), events):
        begin = features.hop_length * frame + Fraction(features.win_length - features.hop_length, 2)
        begin, end = begin / features.sample_rate, (begin + features.hop_length) / features.sample_rate
        if event in EVENTS and Fraction(onset, 100_000) < end and Fraction(onset + length, 100_000) > begin:
            expected[frame, EVENTS.index(event)] = 1
    times = [(event, onset / 100_000, (onset + length) / 100_000) for event, (onset, length) in events]
    result = frame_targets([Annotation(*time) for time in times], EVENTS, frames, features)
    assert result.dtype == np.float32
    assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("onset", "offset", "marked"),
    [
        (0.0175, 0.0275, [1]),  # exactly one frame: 200 ± 80 samples are 7.5 to 17.5 ms
        (0.0174, 0.0276, [0, 1, 2]),
        (0.02, 0.0201, [1]),
        (0.0, 0.0075, []),  # ends before the first frame
        (0.0, 0.0076, [0]),
        (0.03, 9.0, [2, 3, 4]),
        (0.06, 9.0, []),  # begins after the last frame
        (3600.0, 3601.0, []),
    ],
)
def test_frames_of_the_default_features(onset, offset, marked):
    result = frame_targets([Annotation("cat", onset, offset)], EVENTS, 5, FeatureConfig())
    assert_array_equal(result, np.stack([np.zeros(5), np.isin(np.arange(5), marked)], axis=1))


def test_an_event_as_long_as_a_frame_marks_that_frame_alone():
    """DCASE's frames are 16 ms each, the first at 56 ms; in floats 8.024 s are fewer than 128384 samples."""
    for frame in range(620):
        event = Annotation("dog", (56 + 16 * frame) / 1000, (72 + 16 * frame) / 1000)
        assert_array_equal(np.flatnonzero(frame_targets([event], ("dog",), 621, DCASE)), [frame])


def test_a_split_of_clips_keeps_order_names_targets_and_features(tmp_path):
    labels = [{"bell"}, set(), {"knock", "tone"}, {"bell", "knock"}, {"tone"}]
    clips = [
        record(tmp_path, f"{4 - i}.wav", noise(8000 + 160 * i, i), labels=held, split="train")
        for i, held in enumerate(labels)
    ]
    # Neither clips of other splits nor unlabelled ones are read.
    others = [clip("gone.wav", {"bell"}, split="test"), clip("gone too.wav", {"knock"}, split="valid")]
    unknown = clip("unknown.wav", split="train", labelled=False)
    data = load_split(CONFIG, [others[0], clips[0], unknown, *clips[1:], others[1]], "train", tmp_path / "c")
    assert data.names == ["4.wav", "3.wav", "2.wav", "1.wav", "0.wav"]
    assert data.events == ("bell", "knock")
    assert_array_equal(data.targets, [[1, 0], [0, 0], [0, 1], [1, 1], [0, 0]])
    assert_array_equal(data.kind, 1)
    assert len(data.features) == 5
    for item, features in zip(clips, data.features):
        assert_array_equal(features, recording_features(item.path, CONFIG.features))
    clips[2].path.unlink()
    with refused(r"1 of 5 recordings can't be used:\n.*2\.wav: expected a recording, found none"):
        load_split(CONFIG, clips, "train", tmp_path / "c")


@pytest.mark.parametrize(
    ("labels", "found"), [({"bell"}, "0 positive of 2"), ({"bell", "knock"}, "2 positive of 2")]
)
def test_a_split_needs_labelled_clips_and_an_event_positive_and_negative_ones(labels, found):
    rows = ("a", labels, "train"), ("b", labels - {"bell"}, "train"), ("c", {"knock"}, "test")
    clips = [clip(name, held, split=split) for name, held, split in rows]
    for others in ([], [clip("d", split="train", labelled=False)]):  # an unlabelled clip is not a negative
        with refused(f"event 'knock': expected positive and negative clips.*{found}"):
            check_split(CONFIG.data, [*clips, *others], "train")
    with refused(r"recordings: expected clips in split 'test', found none"):
        check_split(CONFIG.data, [clip("a", {"bell"}, split="train")], "test")
    with refused(r"expected labelled clips in split 'test', found none"):
        check_split(CONFIG.data, [clip("a", split="test", labelled=False)], "test")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A set like DESED: five recordings of noise per split, with a dog, a cat, both, a cow, and nothing."""
    root = tmp_path_factory.mktemp("set")
    for number, split in enumerate(("train", "valid", "test")):
        (root / split / "audio").mkdir(parents=True)
        for index in range(5):
            record(root / split / "audio", f"{index}.wav", noise(8000 + 1000 * index, [number, index]))
        rows = ["0.wav\t0.1\t0.2\tdog", "1.wav\t0\t0.25\tcat", "2.wav\t0.3\t0.5\tdog"]
        rows += ["2.wav\t0.125\t0.45\tcat", "3.wav\t0.1\t0.2\tcow"]
        (root / split / "strong.tsv").write_text("filename\tonset\toffset\tevent_label\n" + "\n".join(rows))
        (root / split / "durations.tsv").write_text("filename\tduration\n4.wav\t1\n")
    return root


@pytest.fixture
def timed(root):
    data = DESEDData(root=str(root), events=("cat", "dog"), strong=2, weak=1)
    return RunConfig(features=FeatureConfig(n_mels=8), data=data, recipe=EventRecipe())


def test_a_split_of_timed_events_also_has_annotations_and_lengths(timed, root, tmp_path):
    clips = read_clips(timed.data)
    train = load_split(timed, clips, "train", tmp_path)
    assert train.names == [f"train/audio/{index}.wav" for index in range(5)]
    assert train.events == ("cat", "dog")
    assert_array_equal(train.targets, [[0, 1], [1, 0], [1, 1], [0, 0], [0, 0]])
    assert_array_equal(train.kind, [0, 0, 1, 2, 2])
    indices = [train.indices(kind).tolist() for kind in ("strong", "weak", "unlabelled")]
    assert indices == [[0, 1], [2], [3, 4]]
    assert train.targets.dtype == np.float32 and train.kind.dtype == np.int8
    assert train.annotations == [(("dog", 0.1, 0.2),), (("cat", 0, 0.25),), (), (), ()]
    np.testing.assert_allclose(train.seconds, [0.5, 0.5625, 0.625, 0.6875, 0.75], atol=0.005)
    for name, features in zip(train.names, train.features):
        assert_array_equal(features, recording_features(root / name, timed.features))
    # 0.1 to 0.2 s in frames around 12.5, 22.5, … ms.
    marked = frame_targets(train.annotations[0], train.events, len(train.features[0]), timed.features)
    assert_array_equal(np.flatnonzero(marked[:, 1]), range(9, 20))
    assert not marked[:, 0].any()

    # Other splits keep all labels; other events are left out.
    valid = load_split(timed, clips, "valid", tmp_path)
    assert_array_equal(valid.kind, 0)
    assert valid.annotations[2:] == [(("dog", 0.3, 0.5), ("cat", 0.125, 0.45)), (), ()]

    batch = timed_batches(train, timed.features, frames=60, sizes=(2, 1, 2), seed=0)[0]
    dog = int(np.flatnonzero(batch["weak"][:2, 1])[0])
    assert batch["strong"][1 - dog].any(axis=0).tolist() == [True, False]
    assert set(np.flatnonzero(batch["strong"][dog, :, 1])) >= set(range(9, 20))  # 48 frames, tiled to 60
    assert_array_equal(batch["strong"][2:], 0)
    assert_array_equal(batch["weak"][2:], [[1, 1], [0, 0], [0, 0]])


def test_clips_that_cannot_serve_timed_events_are_named(timed, root, tmp_path):
    clips = read_clips(timed.data)

    def changed(name, **fields):
        return [replace(clip, **fields) if clip.name == name else clip for clip in clips]

    weak = changed("test/audio/1.wav", annotations=None)
    message = "expected onsets and offsets for all clips in split 'test', found none for test"
    with refused(f"{root}: {message}"):
        load_split(timed, weak, "test", tmp_path)
    # 9000 samples are 56 hops, to half a hop, as in the length that metrics get.
    for onset in (0.57, 0.562, 0.56):
        late = changed("test/audio/1.wav", annotations=(Annotation("cat", onset, 0.6),))
        with refused(
            rf"{root}/test/audio/1\.wav: expected onsets before the end \(0\.56 s\), found cat at {onset} s"
        ):
            load_split(timed, late, "test", tmp_path)
    gone = [replace(clip, name=f"gone/{clip.name}") for clip in clips]
    with refused(r"5 of 5 recordings can't be used:\n.*gone/.*: expected a recording, found none"):
        load_split(timed, gone, "train", tmp_path)
    nothing = [replace(clip, labels=clip.labels - {"dog"}) for clip in clips]
    # The two unlabelled clips are not negatives.
    with refused(r"event 'dog': expected positive and negative .* 0 positive of 3"):
        load_split(timed, nothing, "train", tmp_path)
