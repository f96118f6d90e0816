import dataclasses

import numpy as np
import pytest
import soundfile
from sklearn.metrics import roc_auc_score

from qkd_jax.config import DataConfig
from qkd_jax.data.sources.demo import EVENTS, make_clip, make_demo, read_demo
from qkd_jax.data.sources.manifest import read_manifest

RATE, SECONDS, COUNT = 8000, 2.0, 1200


def demo(root, **fields):
    config = DataConfig(root=str(root), source="demo", clip_seconds=0.5, demo_clips=(5, 2, 3), **fields)
    make_demo(config)
    return config


def contents(root):
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"manifest": "list.tsv", "filename_column": "path", "label_separator": "|", "split_column": "fold"},
    ],
    ids=["csv", "tsv"],
)
def test_the_manifest_lists_what_was_made(tmp_path, fields):
    clips = read_manifest(demo(tmp_path, **fields))
    assert [clip.split for clip in clips] == ["train"] * 5 + ["valid"] * 2 + ["test"] * 3
    for number, clip in enumerate(clips):
        split, index = ("train", "valid", "test").index(clip.split), int(clip.path.stem.split("-")[1])
        expected, labels = make_clip(np.random.default_rng([split, index]), 16_000, 0.5)
        samples, rate = soundfile.read(clip.path)
        assert rate == 16_000, number
        np.testing.assert_allclose(samples, expected, atol=2**-15)  # 16-bit files
        assert clip.labels == set(labels)


def test_the_demo_is_deterministic_and_made_once(tmp_path):
    demo(tmp_path / "one")
    config = demo(tmp_path / "two")
    made = contents(tmp_path / "one")
    assert made == contents(tmp_path / "two")
    # Ten recordings, no two alike, the manifest, and what they were made with: nothing half-written is left.
    assert len(set(made.values())) == len(made) == 12
    (tmp_path / "two" / "audio" / "train-00000.wav").write_bytes(b"changed by hand")
    make_demo(dataclasses.replace(config, events=("siren",)))
    assert len(contents(tmp_path / "two")) == 12
    assert (tmp_path / "two" / "audio" / "train-00000.wav").read_bytes() == b"changed by hand"


@pytest.fixture(scope="module")
def clips():
    """Many short clips and which events they hold."""
    made = [make_clip(np.random.default_rng([7, index]), RATE, SECONDS) for index in range(COUNT)]
    return np.stack([samples for samples, _ in made]), np.array([[e in ls for e in EVENTS] for _, ls in made])


# Per clip: 125 ms is the longest time between two knocks, so that the rhythm of knocks, a trait
# they may be told by, is not counted as a shorter duration.
def _frames(samples):
    return (samples.astype(np.float64) ** 2).reshape(len(samples), -1, RATE // 8).mean(axis=2)


BLIND = {
    "level": lambda samples: np.sqrt((samples.astype(np.float64) ** 2).mean(axis=1)),
    "peak": lambda samples: np.abs(samples).max(axis=1),
    "centre in time": lambda samples: _frames(samples) @ np.arange(16) / _frames(samples).sum(axis=1),
    "loudest moment": lambda samples: np.abs(samples).argmax(axis=1),
    "duration": lambda samples: (_frames(samples) > 0.1 * _frames(samples).max(axis=1)[:, None]).sum(axis=1),
}


@pytest.mark.parametrize("feature", BLIND)
def test_no_event_is_told_by_level_position_or_duration(clips, feature):
    """A model that learned one of these would look good here and fail on recordings."""
    samples, holds = clips
    value = BLIND[feature](samples)
    # A third of the 1,200 clips hold an event: the standard error of a blind feature's AUC is
    # sqrt((p + q + 1) / (12 p q)) = 1.8 points for p = 400 and q = 800.  Four of these, and a little
    # for traits that touch the level (knocks have peaks), are 8: far from what a detector could live on.
    for column, event in enumerate(EVENTS):
        assert abs(100 * roc_auc_score(holds[:, column], value) - 50) < 8, event


def test_events_are_told_by_what_they_are(clips):
    """The positive control of the test above: knocks by their rhythm of 8 to 16 a second."""
    samples, holds = clips
    envelope = (samples.astype(np.float64) ** 2).reshape(COUNT, -1, RATE // 100).mean(axis=2)
    rhythm = np.abs(np.fft.rfft(envelope - envelope.mean(axis=1, keepdims=True), axis=1)) ** 2
    share = rhythm[:, 16:33].sum(axis=1) / rhythm.sum(axis=1)  # 2 s: half a Hertz a bin
    assert 100 * roc_auc_score(holds[:, EVENTS.index("knock")], share) > 80


def test_clips_have_one_length_and_do_not_clip(clips):
    samples, holds = clips
    assert samples.shape == (COUNT, SECONDS * RATE)
    assert np.abs(samples).max() <= 1
    # 1 - (1 - .4 / 3)^3 = .349 of the clips hold an event; four standard errors.
    assert holds.mean(axis=0) == pytest.approx([0.349] * 3, abs=0.055)


def test_other_settings_make_other_recordings(tmp_path):
    demo(tmp_path)
    before = contents(tmp_path)
    config = DataConfig(root=str(tmp_path), source="demo", clip_seconds=0.3, demo_clips=(4, 3, 2))
    clips = read_demo(config)
    assert [clip.split for clip in clips] == ["train"] * 4 + ["valid"] * 3 + ["test"] * 2
    assert {soundfile.info(clip.path).frames for clip in clips} == {4800}
    demo(tmp_path)
    assert {name: content for name, content in contents(tmp_path).items() if name in before} == before


def test_a_damaged_note_of_what_it_was_made_with_makes_it_anew(tmp_path):
    demo(tmp_path)
    made = contents(tmp_path)
    (tmp_path / "made-with.json").write_bytes(b"\xff\xfe")
    demo(tmp_path)
    assert contents(tmp_path) == made
