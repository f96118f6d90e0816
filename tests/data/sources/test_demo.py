from dataclasses import replace

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from qkd_jax.config import DemoData, ManifestData
from qkd_jax.data.sources.demo import EVENTS, make_clip, make_demo, read_demo
from qkd_jax.data.sources.manifest import read_manifest

RATE, SECONDS, COUNT = 8000, 2.0, 1200


def demo(root):
    config = DemoData(root=str(root), clip_seconds=0.5, counts=(5, 2, 3))
    make_demo(config)
    return config


def contents(root):
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_manifest_lists_the_recordings_made(tmp_path):
    clips = read_manifest(ManifestData(root=demo(tmp_path).root))
    assert [clip.split for clip in clips] == ["train"] * 5 + ["valid"] * 2 + ["test"] * 3
    for number, clip in enumerate(clips):
        split, index = ("train", "valid", "test").index(clip.split), int(clip.path.stem.split("-")[1])
        expected, labels = make_clip(np.random.default_rng([split, index]), 16_000, 0.5)
        samples, rate = soundfile.read(clip.path)
        assert rate == 16_000, number
        assert_allclose(samples, expected, atol=2**-15)  # 16-bit files
        assert clip.labels == set(labels)


def test_the_demo_is_deterministic_and_made_once(tmp_path):
    demo(tmp_path / "one")
    config = demo(tmp_path / "two")
    made = contents(tmp_path / "one")
    assert made == contents(tmp_path / "two")
    # Ten different recordings, the manifest and the settings; no unfinished files.
    assert len(set(made.values())) == len(made) == 12
    (tmp_path / "two" / "audio" / "train-00000.wav").write_bytes(b"changed by hand")
    make_demo(replace(config, events=("siren",)))
    assert len(contents(tmp_path / "two")) == 12
    assert (tmp_path / "two" / "audio" / "train-00000.wav").read_bytes() == b"changed by hand"


@pytest.fixture(scope="module")
def clips():
    """Samples of many short clips, and the events of each."""
    made = [make_clip(np.random.default_rng([7, index]), RATE, SECONDS) for index in range(COUNT)]
    return np.stack([samples for samples, _ in made]), np.array([[e in ls for e in EVENTS] for _, ls in made])


def _frames(samples):
    # 125 ms are the longest time between two knocks; in shorter frames their rhythm, by which they may be
    # recognised, would count as a shorter duration.
    return (samples.astype(np.float64) ** 2).reshape(len(samples), -1, RATE // 8).mean(axis=2)


BLIND = {
    "level": lambda samples: np.sqrt((samples.astype(np.float64) ** 2).mean(axis=1)),
    "peak": lambda samples: np.abs(samples).max(axis=1),
    "centre in time": lambda samples: _frames(samples) @ np.arange(16) / _frames(samples).sum(axis=1),
    "loudest moment": lambda samples: np.abs(samples).argmax(axis=1),
    "duration": lambda samples: (_frames(samples) > 0.1 * _frames(samples).max(axis=1)[:, None]).sum(axis=1),
}


@pytest.mark.parametrize("feature", BLIND)
def test_level_position_and_duration_reveal_no_event(clips, feature):
    """A model that learned one of these would score well on the demo and fail on recordings."""
    samples, holds = clips
    value = BLIND[feature](samples)
    # A third of the 1,200 clips hold an event: the standard error of a blind feature's AUC is
    # sqrt((p + q + 1) / (12 p q)) = 1.8 points for p = 400 and q = 800.  The limit of 8 points is four of
    # these, and a little for the peaks of knocks: far too little for a detector.
    for column, event in enumerate(EVENTS):
        assert abs(100 * roc_auc_score(holds[:, column], value) - 50) < 8, event


def test_knocks_can_be_recognised_by_their_rhythm(clips):
    """The positive control of the test above: 8 to 16 knocks per second."""
    samples, holds = clips
    envelope = (samples.astype(np.float64) ** 2).reshape(COUNT, -1, RATE // 100).mean(axis=2)
    rhythm = np.abs(np.fft.rfft(envelope - envelope.mean(axis=1, keepdims=True), axis=1)) ** 2
    share = rhythm[:, 16:33].sum(axis=1) / rhythm.sum(axis=1)  # half a hertz per bin
    assert 100 * roc_auc_score(holds[:, EVENTS.index("knock")], share) > 80


def test_recordings_have_one_length_and_are_within_full_scale(clips):
    samples, holds = clips
    assert samples.shape == (COUNT, SECONDS * RATE)
    assert np.abs(samples).max() <= 1
    # 1 - (1 - .4 / 3)^3 = .349 of the clips hold an event; four standard errors.
    assert holds.mean(axis=0) == pytest.approx([0.349] * 3, abs=0.055)


def test_other_settings_make_other_recordings_and_damaged_ones_the_same_again(tmp_path):
    demo(tmp_path)
    before = contents(tmp_path)
    config = DemoData(root=str(tmp_path), clip_seconds=0.3, counts=(4, 3, 2))
    clips = read_demo(config)
    assert [clip.split for clip in clips] == ["train"] * 4 + ["valid"] * 3 + ["test"] * 2
    assert {soundfile.info(clip.path).frames for clip in clips} == {4800}
    demo(tmp_path)
    made = contents(tmp_path)
    assert {name: content for name, content in made.items() if name in before} == before
    (tmp_path / "made-with.json").write_bytes(b"\xff\xfe")
    demo(tmp_path)
    assert contents(tmp_path) == made
