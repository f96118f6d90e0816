"""Clips of a source, unknown events, numbers of negatives, and recordings that can't be used."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from qkd_jax.commands.cli import load_preset
from qkd_jax.config import FeatureConfig, ManifestData, RunConfig, with_data
from qkd_jax.data.clip_list import SOURCES, read_clips, usable_clips
from qkd_jax.data.clips import SPLITS, Annotation, with_splits
from qkd_jax.errors import InputError
from tests import recordings
from tests.faults import refused
from tests.recordings import noise, record


@dataclass(frozen=True, kw_only=True)
class TapeData(ManifestData):
    """Settings of a new source."""


@pytest.fixture
def config(tmp_path):
    """Ten recordings: dogs in 0 to 3, cats in 2 to 5, neither in the others."""
    rows = ["filename,labels"]
    for index in range(10):
        labels = ["dog"] * (index < 4) + ["cat"] * (2 <= index < 6)
        rows.append(f"{index}.wav,{';'.join(labels)}")
        record(tmp_path, f"{index}.wav", noise(8000, index))
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    data = ManifestData(root=str(tmp_path), clip_seconds=0.5)
    return RunConfig(features=FeatureConfig(n_mels=8), data=data)


def names(clips):
    return [clip.name.removesuffix(".wav") for clip in clips]


def test_clips_with_events_are_all_kept_and_negatives_up_to_their_number(config):
    chosen = names(read_clips(with_data(config, events=("dog",), negatives=4).data))
    assert chosen == sorted(chosen) and len(chosen) == 8 and {"0", "1", "2", "3"} < set(chosen)
    assert names(read_clips(with_data(config, events=("dog",), negatives=4).data)) == chosen
    assert len(read_clips(with_data(config, negatives=2).data)) == 8  # every label is an event
    assert len(read_clips(with_data(config, negatives=400).data)) == 10
    with refused(r"--data\.events: expected one of (dog|cat) \(4\).*, got 'dgo'"):
        read_clips(with_data(config, events=("cat", "dgo")).data)


def spoil(config):
    """Make four of the ten recordings unusable, each in another way; returns the reasons."""
    root = Path(config.data.root)
    (root / "1.wav").unlink()
    (root / "3.wav").write_bytes(b"")
    record(root, "4.wav", np.zeros(8000))
    record(root, "7.wav", np.zeros(8000))  # a negative may be silent
    (root / "8.wav").write_bytes((root / "8.wav").read_bytes()[:5000])
    return [
        f"{root / '1.wav'}: expected a recording, found none",
        f"{root / '3.wav'}: expected a recording, found an empty file",
        f"{root / '4.wav'}: silent, but labelled cat",
        f"{root / '8.wav'}: cut off: expected 32000 bytes of samples, found 4920",
    ]


def test_all_unusable_recordings_are_listed_together(config, tmp_path):
    reasons = spoil(config)
    with pytest.raises(InputError) as caught:
        usable_clips(config.data, config.features, tmp_path / "cache")
    first, *lines, last = str(caught.value).splitlines()
    assert first == "4 of 10 recordings can't be used:"
    assert last == "to skip them: --data.skip-bad"
    assert all(line.strip().startswith(reason) for line, reason in zip(lines, reasons, strict=True))


def test_unusable_recordings_are_left_out_and_reported_with_skip_bad(config, tmp_path, capsys):
    reasons = spoil(config)
    data = with_data(config, skip_bad=True).data
    clips, bad = usable_clips(data, config.features, tmp_path / "cache")
    assert names(clips) == ["0", "2", "5", "6", "7", "9"]
    assert [line.startswith(reason) for line, reason in zip(bad, reasons)] == [True] * 4
    printed = capsys.readouterr().out
    assert "\nskipped 4 of 10 recordings:" in printed
    assert all(reason in printed for reason in reasons)


def test_a_long_list_is_cut_and_a_set_without_usable_recordings_is_refused(config, tmp_path):
    root = tmp_path / "empty"
    root.mkdir()
    rows = [f"{index}.wav,dog" for index in range(30)]
    (root / "metadata.csv").write_text("\n".join(["filename,labels", *rows]) + "\n")
    for skip in (False, True):
        data = with_data(config, root=str(root), skip_bad=skip).data
        with refused("30 of 30 recordings can't be used") as caught:
            usable_clips(data, config.features, tmp_path / "cache")
        assert len(str(caught.value).splitlines()) == 22
        assert "and 10 more" in str(caught.value)


def test_the_papers_subset_of_audioset(tmp_path):
    """400 segments: three events, one clip in ten without a recording, half of the negatives wanted."""
    preset = load_preset("audioset")
    assert preset.data.negatives == 36_036  # of 13,460 + 2,313 + 4,083 positives beside them
    mids = dict(zip(("/m/0bt9lr", "/t/dd00002", "/m/032s66", "/m/04rlf"), (*preset.data.events, "Music")))
    rows = (f'{index},{mid},"{name}"\n' for index, (mid, name) in enumerate(mids.items()))
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n" + "".join(rows))
    (tmp_path / "audio").mkdir()
    segments, (dog, baby, gun, music) = [], mids
    for index in range(400):
        held = [music] + [dog] * (index < 120) + [baby] * (100 <= index < 140) + [gun] * (140 <= index < 160)
        segments.append(f'{index:011}, 30.000, 40.000, "{",".join(held)}"')
        if index % 10:
            (tmp_path / "audio" / f"Y{index:011}.wav").touch()
    (tmp_path / "unbalanced_train_segments.csv").write_text("# Segments\n" + "\n".join(segments) + "\n")
    data = replace(preset.data, root=str(tmp_path), negatives=100)
    clips = with_splits(read_clips(data), data.events)
    counts = {
        event: [sum(event in clip.labels and clip.split == split for clip in clips) for split in SPLITS]
        for event in data.events
    }
    assert {event: sum(splits) for event, splits in counts.items()} == dict(zip(data.events, (108, 36, 18)))
    negatives = [clip.split for clip in clips if clip.labels.isdisjoint(data.events)]
    assert [negatives.count(split) for split in SPLITS] == [70, 10, 20]
    for splits in counts.values():
        assert_allclose(splits, sum(splits) * np.array([0.7, 0.1, 0.2]), atol=2)


def test_a_source_needs_only_its_settings_and_its_line_and_names_once(monkeypatch, config):
    monkeypatch.setitem(SOURCES, TapeData, lambda data: read_clips(config.data)[:3])
    assert names(read_clips(TapeData(events=("cat",), negatives=1)))[-1] == "2"
    twice = list(map(recordings.clip, ["1.wav", "3.wav", "3.wav"]))
    monkeypatch.setitem(SOURCES, TapeData, lambda data: twice)
    with refused(r"tapes: expected each recording once, found 3\.wav 2 times"):
        read_clips(TapeData(root="tapes"))


COMPOSED, DECOMPOSED = "caf\u00e9.wav", "cafe\u0301.wav"


def listed(root, *rows, **fields):
    """The settings of a table with these rows."""
    (root / "metadata.csv").write_text("\n".join(["filename,labels", *rows]) + "\n", encoding="utf-8")
    return ManifestData(root=str(root), clip_seconds=0.5, **fields)


@pytest.mark.parametrize(
    ("row", "on_disk"),
    [
        ("gate\\a.wav", "gate/a.wav"),
        (".\\gate\\day 1\\..\\a.wav", "gate/a.wav"),
        ("gate\\a.wav", "gate\\a.wav"),
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        (f"caf\u00e9\\{COMPOSED}", f"cafe\u0301/{DECOMPOSED}"),
    ],
)
def test_names_are_taken_as_they_are_on_disk(tmp_path, row, on_disk):
    path = tmp_path / on_disk
    path.parent.mkdir(exist_ok=True)
    record(path.parent, path.name, noise(8000))
    data = listed(tmp_path, f"{row},dog")
    (clip,), bad = usable_clips(data, FeatureConfig(n_mels=8), tmp_path / "cache")
    assert (clip.name, clip.group, clip.path, bad) == (on_disk, on_disk, path, [])
    with refused("expected each recording once"):
        read_clips(listed(tmp_path, f"{row},dog", f"{on_disk},"))


def test_a_recording_whose_name_only_resembles_the_tables_is_named(tmp_path):
    (tmp_path / "Gate").mkdir()
    for name in ("Gate/DOG.WAV", " blank.wav", "there.wav"):
        record(tmp_path, name, noise(8000))
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes((tmp_path / "there.wav").read_bytes())
    absent = ["gate/dog.wav", "blank.wav", "caf\u00e9.wav", "absent.wav"]
    data = listed(tmp_path, "there.wav,", *(f"{name},dog" for name in absent), skip_bad=True)
    clips, bad = usable_clips(data, FeatureConfig(n_mels=8), tmp_path / "cache")
    assert names(clips) == ["there"]
    others = ["'Gate/DOG.WAV'", "' blank.wav'", r"'caf\udce9.wav'"]
    advice = [*(f"; there is {other}, spelled otherwise" for other in others), ""]
    reasons = (f"{tmp_path / name}: expected a recording, found none" for name in absent)
    assert bad == [reason + more for reason, more in zip(reasons, advice)]


def test_names_that_are_not_utf_8_are_faults_among_others(tmp_path, monkeypatch):
    odd = os.fsdecode(b"b\xff.wav")
    found = [record(tmp_path, "a.wav", noise(8000)), recordings.clip(odd, root=tmp_path)]
    (tmp_path / odd).write_bytes((tmp_path / "a.wav").read_bytes())
    monkeypatch.setitem(SOURCES, TapeData, lambda data: found)
    clips, bad = usable_clips(TapeData(skip_bad=True), FeatureConfig(n_mels=8), tmp_path / "cache")
    reason = rf"{tmp_path}/b?.wav: expected a name in UTF-8, found 'b\udcff.wav'"
    assert (names(clips), bad) == (["a"], [reason])
    with refused(r"1 of 2 recordings can't be used:\n.*expected a name in UTF-8(.|\n)*--data\.skip-bad"):
        usable_clips(TapeData(), FeatureConfig(n_mels=8), tmp_path / "cache")


def labels_of(clips):
    return [sorted(clip.labels) for clip in clips]


def test_labels_are_one_whatever_their_blanks_unicode_form_and_case(tmp_path, capsys):
    rows = ["1,dog", "2,Dog ; DOG", "3,\u00a0dog", "4,cafe\u0301;", "5,caf\u00e9", "6,Caf\u00e9; ;Z"]
    clips = read_clips(listed(tmp_path, *rows))
    assert labels_of(clips) == [["dog"], ["dog"], ["dog"], ["caf\u00e9"], ["caf\u00e9"], ["Z", "caf\u00e9"]]
    notes = ["DOG (1) is read as dog", "Dog (1) is read as dog", "Caf\u00e9 (1) is read as caf\u00e9"]
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"labels: {note}" for note in notes)
    # The run's events decide the spelling, here the decomposed one.
    clips = read_clips(listed(tmp_path, *rows, events=("cafe\u0301", "DOG")))
    assert labels_of(clips) == [["DOG"]] * 3 + [["cafe\u0301"]] * 2 + [["Z", "cafe\u0301"]]
    # Unless they tell two apart.
    clips = read_clips(listed(tmp_path, "1,dog", "2,Dog", "3,", events=("Dog", "dog")))
    assert labels_of(clips) == [["dog"], ["Dog"], []]


@pytest.mark.parametrize("twice", ["dog", " dog", "caf\u00e9"])
def test_an_event_is_listed_once(tmp_path, twice):
    data = listed(tmp_path, "1,dog", "2,caf\u00e9", events=("dog", "cafe\u0301", twice))
    with refused(f"^--data.events: expected each event once, got dog, cafe\u0301, {twice}$"):
        read_clips(data)


def test_labels_of_every_source_are_spelled_alike_with_their_times(monkeypatch, capsys):
    times = (Annotation(" dog", 0.0, 1.0), Annotation("cat", 1.0, 2.0))
    found = [
        recordings.clip("a", [" dog", "cat"], annotations=times),
        recordings.clip("b", ["DOG"], annotations=()),
        recordings.clip("c", ["dog "]),
    ]
    monkeypatch.setitem(SOURCES, TapeData, lambda data: found)
    clips = read_clips(TapeData(events=("dog",)))
    assert labels_of(clips) == [["cat", "dog"], ["dog"], ["dog"]]
    assert [clip.annotations for clip in clips] == [(("dog", 0.0, 1.0), ("cat", 1.0, 2.0)), (), None]
    assert capsys.readouterr().out == "labels: DOG (1) is read as dog\n"
