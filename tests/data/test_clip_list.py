"""Sources by name, events that are no label, negatives by number, and recordings that can't be used."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qkd_jax.commands.cli import load_preset
from qkd_jax.config import DataConfig, FeatureConfig, RunConfig, with_data
from qkd_jax.data.clip_list import SOURCES, read_clips, usable_clips
from qkd_jax.data.clips import SPLITS, Clip, with_splits
from qkd_jax.errors import InputError


@pytest.fixture
def config(tmp_path):
    """Ten recordings: 0 to 3 dogs, 2 to 5 cats, the others unlabelled."""
    rows = ["filename,labels"]
    for index in range(10):
        labels = ["dog"] * (index < 4) + ["cat"] * (2 <= index < 6)
        rows.append(f"{index}.wav,{';'.join(labels)}")
        noise = np.random.default_rng(index).normal(0, 0.1, 8000)
        soundfile.write(tmp_path / f"{index}.wav", noise, 16_000)
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    return RunConfig(features=FeatureConfig(n_mels=8), data=DataConfig(root=str(tmp_path), clip_seconds=0.5))


def names(clips):
    return [clip.name.removesuffix(".wav") for clip in clips]


def test_an_unknown_source_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"data\.source: expected one of manifest, .*demo, got 'tape'"):
        read_clips(DataConfig(source="tape"))


def test_a_source_needs_nothing_but_its_line(monkeypatch, config):
    monkeypatch.setitem(SOURCES, "tape", lambda data: read_clips(config.data)[:3])
    assert names(read_clips(DataConfig(source="tape", events=("cat",), negatives=1)))[-1] == "2"


def test_an_event_that_labels_no_recording_is_refused_with_the_labels_there_are(config):
    with pytest.raises(
        InputError, match=r"events: no recording has the label 'dgo'; there are (dog|cat) \(4\)"
    ):
        read_clips(with_data(config, events=("cat", "dgo")).data)


def test_all_clips_with_an_event_and_as_many_negatives_as_asked_for(config):
    chosen = names(read_clips(with_data(config, events=("dog",), negatives=4).data))
    assert chosen == sorted(chosen) and len(chosen) == 8 and {"0", "1", "2", "3"} < set(chosen)
    assert names(read_clips(with_data(config, events=("dog",), negatives=4).data)) == chosen
    assert len(read_clips(with_data(config, negatives=2).data)) == 8  # every label is an event
    assert len(read_clips(with_data(config, negatives=400).data)) == 10


def spoil(config):
    """Four recordings of ten can't be used, each for a reason of its own."""
    root = Path(config.data.root)
    (root / "1.wav").unlink()
    (root / "3.wav").write_bytes(b"")
    soundfile.write(root / "7.wav", np.zeros(8000), 16_000)
    (root / "8.wav").write_bytes((root / "8.wav").read_bytes()[:5000])
    return [
        f"{root / '1.wav'}: not there",
        f"{root / '3.wav'}: expected a recording that libsndfile reads: Error opening",
        f"{root / '7.wav'}: silent: all 8000 samples are 0",
        f"{root / '8.wav'}: cut off: expected 16000 bytes, found 4956",
    ]


def test_recordings_that_cannot_be_used_are_listed_all_at_once(config, tmp_path):
    reasons = spoil(config)
    with pytest.raises(InputError) as caught:
        usable_clips(config, tmp_path / "cache")
    first, *lines, last = str(caught.value).splitlines()
    assert first == "4 of 10 recordings can't be used:"
    assert last == "--data.skip-bad leaves them out"
    assert len(lines) == 4
    for line, reason in zip(lines, reasons):
        assert line.strip().startswith(reason)


def test_they_are_left_out_and_reported_where_that_is_set(config, tmp_path, capsys):
    reasons = spoil(config)
    clips, bad = usable_clips(with_data(config, skip_bad=True), tmp_path / "cache")
    assert names(clips) == ["0", "2", "4", "5", "6", "9"]
    assert [line.startswith(reason) for line, reason in zip(bad, reasons)] == [True] * 4
    printed = capsys.readouterr().out
    assert "\nleft out: 4 of 10 recordings can't be used:" in printed
    assert all(reason in printed for reason in reasons)


def test_a_long_list_is_cut_and_all_bad_is_never_left_out(config, tmp_path):
    root = tmp_path / "empty"
    root.mkdir()
    rows = [f"{index}.wav,dog" for index in range(30)]
    (root / "metadata.csv").write_text("\n".join(["filename,labels", *rows]) + "\n")
    for skip in (False, True):
        with pytest.raises(InputError, match="30 of 30 recordings can't be used") as caught:
            usable_clips(with_data(config, root=str(root), skip_bad=skip), tmp_path / "cache")
        assert len(str(caught.value).splitlines()) == 22
        assert "and 10 more" in str(caught.value)


def test_the_demo_is_made_and_read_like_any_recordings(tmp_path):
    data = DataConfig(source="demo", root=str(tmp_path / "demo"), clip_seconds=0.5, demo_clips=(12, 1, 2))
    clips = read_clips(data)
    assert [clip.split for clip in clips] == ["train"] * 12 + ["valid"] + ["test"] * 2
    assert read_clips(dataclasses.replace(data, source="manifest")) == clips


def test_the_papers_subset_of_audioset(tmp_path):
    """400 segments: three events, one clip in ten without a recording, half of the negatives wanted."""
    preset = load_preset("audioset", Path(__file__).parents[2] / "configs")
    assert preset.data.negatives == 36_036  # of 13,460 + 2,313 + 4,083 positives beside them
    mids = dict(zip(("/m/0bt9lr", "/t/dd00002", "/m/032s66", "/m/04rlf"), (*preset.data.events, "Music")))
    (tmp_path / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n"
        + "".join(f'{i},{mid},"{name}"\n' for i, (mid, name) in enumerate(mids.items()))
    )
    segments, (dog, baby, gun, music) = [], mids
    for index in range(400):
        held = [music] + [dog] * (index < 120) + [baby] * (100 <= index < 140) + [gun] * (140 <= index < 160)
        segments.append(f'{index:011}, 30.000, 40.000, "{",".join(held)}"')
        if index % 10:
            (tmp_path / "audio").mkdir(exist_ok=True)
            (tmp_path / "audio" / f"Y{index:011}.wav").touch()
    (tmp_path / "unbalanced_train_segments.csv").write_text("# Segments\n" + "\n".join(segments) + "\n")
    data = dataclasses.replace(preset.data, root=str(tmp_path), negatives=100)
    clips = with_splits(read_clips(data), data.events)
    counts = {
        event: [sum(event in clip.labels and clip.split == split for clip in clips) for split in SPLITS]
        for event in data.events
    }
    assert {event: sum(splits) for event, splits in counts.items()} == dict(zip(data.events, (108, 36, 18)))
    negatives = [clip.split for clip in clips if clip.labels.isdisjoint(data.events)]
    assert [negatives.count(split) for split in SPLITS] == [70, 10, 20]
    for splits in counts.values():
        np.testing.assert_allclose(splits, sum(splits) * np.array([0.7, 0.1, 0.2]), atol=2)


def test_a_recording_that_a_source_lists_twice_is_named(monkeypatch, config):
    clips = read_clips(config.data)
    monkeypatch.setitem(SOURCES, "tape", lambda data: [*clips, clips[3]])
    with pytest.raises(InputError, match=r"expected each recording once, found 3\.wav 2 times"):
        read_clips(DataConfig(source="tape", root="tapes"))


def test_a_name_that_is_no_text_is_refused(monkeypatch, config):
    clips = [Clip(name="a\udcff.wav", root=Path(), labels=frozenset(), group="a")]
    monkeypatch.setitem(SOURCES, "new", lambda data: clips)
    with pytest.raises(InputError, match=r"expected names in UTF-8, found 'a\\udcff\.wav'"):
        read_clips(dataclasses.replace(config.data, source="new", events=()))
