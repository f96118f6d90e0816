"""What is found in recordings and labels before a run: each fault, and nothing in recordings without any."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from qkd_jax.config import AudioSetData, FeatureConfig, ManifestData, RunConfig, with_data
from qkd_jax.data import cache
from qkd_jax.data.cache import Entries
from qkd_jax.data.check import all_findings, auc_of, early_findings, in_annotations, shortcuts, unlisted
from qkd_jax.data.clip_list import listed_clips
from qkd_jax.data.clips import SPLITS, Annotation
from qkd_jax.data.features import cached_features
from qkd_jax.data.measure import measure
from tests.recordings import clip, noise, record

EVENTS = ("dog", "cat")
FEATURES = FeatureConfig(n_mels=8)
SAMPLES = 3200


def sound(seed, samples=SAMPLES):
    """Noise of a random level."""
    return noise(samples, seed) * np.random.default_rng(seed).uniform(0.3, 1)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Recordings of noise, 12 per split of each event and of neither; measured once for all tests."""
    root, clips = tmp_path_factory.mktemp("clean"), []
    for number, (split, labels, _) in enumerate(itertools.product(SPLITS, (["dog"], ["cat"], []), range(12))):
        clips.append(record(root, f"{number}.wav", sound(number), split=split, labels=labels))
    return clips, {clip: measure(clip.path, FEATURES) for clip in clips}


class Folder:
    """A folder with a table, to which recordings with faults are added; the clean ones lie elsewhere."""

    def __init__(self, root, clean):
        self.root, (self.clean, self.measured) = root, clean
        self.clips = list(self.clean)
        data = ManifestData(root=str(root), events=EVENTS, clip_seconds=SAMPLES / 16_000)
        self.config = RunConfig(features=FEATURES, data=data)
        (root / "metadata.csv").write_text("filename,labels\nelsewhere.wav,\n")

    def add(self, split, label=None, samples=None, rate=16_000, name=None, **fields):
        number = len(self.clips)
        name, samples = name or f"{number}.wav", sound(number) if samples is None else samples
        labels = () if label is None else (label,)
        self.clips.append(record(self.root, name, samples, rate, split=split, labels=labels, **fields))
        with open(self.root / "metadata.csv", "a") as file:
            file.write(f"{name},\n")

    @property
    def listed(self):
        return listed_clips(replace(self.config.data, events=()))

    def early(self):
        """What is found before training, by tables and cached features."""
        entries, bad = cached_features(self.clips, FEATURES, self.clean[0].root / "cache")
        assert not bad
        return lines(early_findings(self.config, self.clips, entries, self.listed))

    def all(self):
        measured = [self.measured.get(clip) or measure(clip.path, FEATURES) for clip in self.clips]
        assert not any(each.fault for each in measured)
        return lines(all_findings(self.config, self.clips, measured, self.listed))


def lines(findings):
    """Titles with items, without their numbers."""
    assert [each.severity for each in findings] == sorted(each.severity for each in findings)
    return {each.what: [str(item) for item in each.items] for each in findings}


@pytest.fixture
def folder(tmp_path, clean):
    return Folder(tmp_path, clean)


def of(found, word):
    """The items of the one finding whose title has `word`."""
    [items] = [items for title, items in found.items() if word in title]
    return items


def test_noise_has_no_faults(folder):
    assert folder.all() == folder.early() == {}


def test_the_same_sound_in_two_splits_or_with_other_labels(folder):
    samples = noise(SAMPLES, 1000)
    folder.add("train", "dog", samples, name="a.wav")
    folder.add("test", "dog", samples, name="b.aiff")
    folder.add("train", "cat", noise(SAMPLES, 1001), name="c.wav")
    folder.add("train", None, noise(SAMPLES, 1001), name="d.wav")
    # Equal in length and in the middle, but not equal.
    folder.add("valid", "dog", np.concatenate([samples[:-400], -samples[-400:]]), name="e.wav")
    for found in (folder.all(), folder.early()):
        assert of(found, "several splits") == ["a.wav, b.aiff (train, test)"]
        assert of(found, "different labels") == ["c.wav, d.wav (cat / none)"]
        assert of(found, "one split") == ["c.wav, d.wav (train)"]
        assert len(found) == 3


def test_segments_of_one_recording_are_not_copies(folder):
    folder.add("train", "dog", name="long.wav")
    folder.clips.append(replace(folder.clips[-1], labels=frozenset()))
    assert folder.all() == folder.early() == {}


def test_copies_of_long_recordings_are_compared_part_by_part(folder, monkeypatch):
    """Whose features are read once, and whose parts differ in labels for a reason."""
    read = []
    monkeypatch.setattr(
        "qkd_jax.data.check.read_entry", lambda entry: read.append(entry) or cache.read_entry(entry)
    )
    for name, split in (("a.wav", "train"), ("b.wav", "train"), ("c.wav", "test")):
        folder.add(split, "dog", noise(2 * SAMPLES), name=name)
        whole = folder.clips.pop()
        for start, labels in ((0.0, {"dog"}), (0.2, set())):
            folder.clips.append(
                replace(
                    whole,
                    name=f"{name}#t={start:g},{start + 0.2:g}",
                    file=name,
                    part=(start, start + 0.2),
                    labels=frozenset(labels),
                )
            )
    for found in (folder.all(), folder.early()):
        assert found == {
            "the same sound under several names in several splits, which leaks training data": [
                "a.wav, b.wav, c.wav (train, train, test)"
            ]
        }
    assert len(read) == 3
    folder.clips[-1] = replace(folder.clips[-1], labels=frozenset({"cat"}))
    for found in (folder.all(), folder.early()):
        assert of(found, "different labels") == [
            "a.wav#t=0.2,0.4, b.wav#t=0.2,0.4, c.wav#t=0.2,0.4 (none / none / cat)"
        ]


def test_groups_in_two_splits(folder):
    folder.add("train", group="tape")
    folder.add("test", group="tape")
    for found in (folder.all(), folder.early()):
        assert found == {
            "groups in several splits, which leaks training data": [
                "108.wav, 109.wav (group tape: train, test)"
            ]
        }


def test_few_positives(folder):
    folder.config = with_data(folder.config, events=(*EVENTS, "owl"))
    for split, count in {"train": 12, "valid": 3, "test": 9}.items():
        for _ in range(count):
            folder.add(split, "owl")
    for found in (folder.all(), folder.early()):
        assert found == {
            "fewer than 10 positives in a split, so figures vary widely": ["owl: 3 valid, 9 test"]
        }


def test_recordings_much_longer_or_shorter_than_a_clip(folder):
    folder.add("train", "dog", noise(10 * SAMPLES), name="long.wav")
    folder.add("train", None, noise(10 * SAMPLES, 1), name="negative.wav")
    times = (Annotation("dog", 0.5, 0.7),)
    folder.add("train", "dog", noise(10 * SAMPLES, 2), name="timed.wav", annotations=times)
    folder.add("train", "dog", noise(SAMPLES // 4), name="short.wav")
    found, early = folder.all(), folder.early()
    assert of(found, "3 or more times as long") == ["long.wav (2 s)"]
    assert of(found, "shorter than half") == ["short.wav (0.05 s, 4 times)"]
    assert len(found) == len(early) == 2
    assert [item.split()[0] for item in of(early, "3 or more times")] == ["long.wav"]
    assert [item.split()[0] for item in of(early, "shorter than half")] == ["short.wav"]


@pytest.mark.parametrize(
    ("name", "samples", "rate"),
    [
        ("length", lambda seed: sound(seed, SAMPLES * 3 // 4), 16_000),
        ("level", lambda seed: 0.1 * sound(seed), 16_000),
        ("sample rate", lambda seed: sound(seed, SAMPLES // 2), 8000),
    ],
)
def test_properties_that_give_an_event_away(folder, name, samples, rate):
    folder.config = with_data(folder.config, events=(*EVENTS, "owl"))
    for split in ("train", "valid", "test"):
        for _ in range(12):
            folder.add(split, "owl", samples(len(folder.clips)), rate)
    early, items = folder.early(), of(folder.all(), "shortcuts")
    names = [name, "band limit"] if name == "sample rate" else [name]
    for item, prefix in zip(items, names, strict=True):
        assert float(item.removeprefix(f"owl by {prefix}: AUC ").split(",")[0]) > 0.95
    if name == "sample rate":
        assert items[0].endswith("median 8,000 Hz, elsewhere 16,000 Hz")
    # Features tell the length alone.
    assert len(early) == (name == "length") and (
        not early or of(early, "shortcuts")[0].startswith(items[0][:20])
    )


def test_auc_of_one_property():
    rng = np.random.default_rng(0)
    truth = rng.random((500, 3)) < [0.1, 0.3, 0.5]
    chance = rng.normal(size=500)
    assert (abs(auc_of(chance, truth) - 0.5) < 0.1).all()
    assert auc_of(np.where(truth[:, 0], 2, chance), truth)[0] > 0.98  # in the midst of the others
    assert auc_of(truth[:, 1] * 1.0, truth)[1] == pytest.approx(1, abs=1e-3)
    assert auc_of(np.zeros(500), truth) == pytest.approx(0.5, abs=0.1)
    assert np.isnan(auc_of(chance, np.zeros((500, 1), bool))).all()
    assert list(shortcuts([clip("a", labelled=False)], ("dog",), {"level": np.zeros(1)})) == []


def test_few_recordings_prove_no_shortcut():
    """Three of six that are longer: by chance, one in ten is as far apart."""
    clips = [clip(str(index), ["dog"] * (index < 3)) for index in range(6)]
    assert list(shortcuts(clips, ("dog",), {"length": np.array([2.0, 2, 2, 1, 1, 1])})) == []


SINE = np.sin(np.arange(SAMPLES)).astype(np.float32)


@pytest.mark.parametrize(
    ("title", "samples", "note"),
    [
        ("clipped", np.clip(1.01 * SINE, -1, 1), "9.6%"),
        ("very quiet", 1e-4 * SINE, "-83 dB"),
        ("DC offset", 0.1 * SINE + 0.5, "+50.0%"),
        ("dead channel", np.stack([SINE * 0.9, 0 * SINE], 1), "-4, -200 dB"),
        ("cancel", np.stack([SINE * 0.9, -0.89 * SINE], 1), "45 dB"),
    ],
)
def test_unusual_samples(folder, title, samples, note):
    folder.add("train", "dog", samples, name="odd.wav")
    found = folder.all()
    assert of(found, title) == [f"odd.wav ({note})"]
    assert len(found) == 1 and folder.early() == {}


def test_labels_after_the_end():
    late = clip("a.wav", ["dog"], annotations=(Annotation("dog", 0.1, 0.2), Annotation("dog", 3, 4)))
    measured = measure(late.path, FEATURES)._replace(seconds=2.0)
    assert lines(list(in_annotations([late, clip("b.wav")], [measured, measured]))) == {
        "events that begin after the end of their recording": ["a.wav (dog at 3 s of 2 s)"]
    }


def test_recordings_that_no_table_names(folder):
    (folder.root / "more" / ".hidden").mkdir(parents=True)
    for name in ("more/a.WAV", "b.flac", "._c.wav", "more/.hidden/d.wav", "notes.txt"):
        (folder.root / name).write_bytes(b"")
    title = f"recordings in {folder.root} that no table names, so they are not read"
    assert folder.all() == folder.early() == {title: ["b.flac", "more/a.WAV"]}
    (folder.root / "metadata.csv").write_text("filename,labels\nb.flac,dog\nmore/a.WAV,\nmore/e.wav,\n")
    assert list(unlisted(folder.config.data, folder.listed)) == []
    # A link, and a folder of recordings without labels, are read under another name.
    (folder.root / "link.flac").symlink_to(folder.root / "b.flac")
    (folder.root / "unknown").mkdir()
    (folder.root / "unknown" / "f.wav").write_bytes(b"")
    folder.config = with_data(folder.config, unlabelled=f"{folder.root}/unknown/../unknown")
    assert list(unlisted(folder.config.data, folder.listed)) == []
    assert list(unlisted(AudioSetData(root=str(folder.root)), [])) == []


def test_more_features_than_can_be_opened_at_once_are_not_compared(folder, monkeypatch):
    folder.add("train", "dog", sound(0), name="copy.wav")
    assert len(of(folder.early(), "one split")) == 1
    monkeypatch.setattr("qkd_jax.data.check._MANY", 100)
    assert folder.early() == {} and isinstance(cached_features([], FEATURES, folder.root)[0], Entries)


def test_a_finding_names_a_few_and_counts_the_others(folder):
    for index in range(5):
        folder.add("train", "dog", 1e-4 * SINE * (1 + index / 10), name=f"quiet\x1b{index}.wav")
    [quiet] = all_findings(
        folder.config, folder.clips, [measure(clip.path, FEATURES) for clip in folder.clips], folder.listed
    )
    text = (
        "very quiet: an RMS below -60 dB re full scale (5):\n  quiet?0.wav (-83 dB); quiet?1.wav (-82 dB); "
    )
    assert str(quiet) == f"{text}quiet?2.wav (-81 dB) and 2 more"
