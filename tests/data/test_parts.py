"""Long recordings cut into clips: places, names, labels, annotations and features of the parts."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qkd_jax.commands.evaluate_file import _logits
from qkd_jax.config import (
    AudacityData,
    EventRecipe,
    FeatureConfig,
    LSTMConfig,
    ManifestData,
    ModelConfig,
    RunConfig,
    TimedData,
    with_data,
)
from qkd_jax.data.clip_list import clips_to_score, read_clips, usable_clips
from qkd_jax.data.clips import SPLITS, UNLABELLED, Annotation, read_clip_list, write_clips
from qkd_jax.data.dataset import load_split
from qkd_jax.data.features import recording_features
from qkd_jax.data.parts import cached_frames, cut, rows_of
from qkd_jax.run_folder.folder import open_run
from qkd_jax.runtimes import Exported
from qkd_jax.training import events
from qkd_jax.training.teachers import _of_part
from tests.faults import refused, refused_exactly
from tests.recordings import clip, noise, record

FEATURES = FeatureConfig(n_mels=8)
CONFIG = RunConfig(
    features=FEATURES, data=TimedData(root="recordings", clip_seconds=1.0, events=("dog", "cat"))
)


def cut_cached(clips, data, features, cache, *, timed):
    """`cut`, by the lengths of the features in `cache`."""
    return cut(clips, data, features, cached_frames(clips, data, features, cache), timed=timed)


@pytest.fixture
def parts(tmp_path):
    """Cuts one recording of noise: `parts(seconds, *events, timed=False, **clip)`."""

    def parts(seconds, *events, timed=False, config=CONFIG, **fields):
        recording = record(
            tmp_path,
            "a.wav",
            noise(round(16_000 * seconds)),
            annotations=tuple(Annotation(*each) for each in events),
            **fields,
        )
        return cut_cached([recording], config.data, FEATURES, tmp_path / "cache", timed=timed)

    return parts


@pytest.mark.parametrize(
    ("seconds", "clips", "timed", "scored"),
    [
        (0.7, [None], [None], [None]),
        (1.0, [None], [None], [None]),
        (1.08, [None], [(0, 1)], [None]),  # less than a tenth more: appended, or left out
        (1.2, [(0, 1), (0.2, 1.2)], [(0, 1), (0.2, 1.2)], [None]),
        (3.0, *3 * [[(0, 1), (1, 2), (2, 3)]]),
        (3.05, [(0, 1), (1, 2), (2, 3.05)], [(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3.05)]),
        (3.1, *2 * [[(0, 1), (1, 2), (2, 3), (2.1, 3.1)]], [(0, 1), (1, 2), (2, 3.1)]),
    ],
)
def test_places_of_parts(parts, seconds, clips, timed, scored):
    assert [each.part for each in parts(seconds)] == clips
    assert [each.part for each in parts(seconds, timed=True, split="train")] == timed
    assert [each.part for each in parts(seconds, timed=True, split="test")] == scored


def test_parts_cover_every_frame_of_clips(parts, tmp_path):
    """At any length, no sample that a frame begins with is lost, and no part is shorter than a clip."""
    for hundredths in range(100, 420, 13):
        pieces = [each.part or (0, hundredths / 100) for each in parts(hundredths / 100)]
        assert pieces[0][0] == 0 and abs(pieces[-1][1] - hundredths / 100) < 0.011
        for (start, end), (following, _) in itertools.pairwise(pieces):
            assert following <= end and end - start >= 0.999


def test_names_and_files_of_parts(parts, tmp_path):
    first, last = parts(1.2, group="day 1")
    assert (first.name, last.name) == ("a.wav#t=0,1", "a.wav#t=0.2,1.2")
    assert first.path == last.path == tmp_path / "a.wav" and first.group == last.group == "day 1"
    write_clips(tmp_path / "clips.jsonl", [first, last])
    assert read_clip_list(tmp_path / "clips.jsonl", tmp_path) == [first, last]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (("dog", 0.2, 0.4), ["dog", "", ""]),
        (("dog", 0.8, 1.3), ["-", "dog", ""]),  # 0.2 s are less than half of 0.5 s
        (("dog", 0.75, 1.25), ["dog", "dog", ""]),
        (("dog", 0.6, 2.4), ["-", "dog", "-"]),
        (("dog", 0.5, 2.9), ["dog", "dog", "dog"]),  # half a second is enough
        (("dog", 1.0, 2.0), ["", "dog", ""]),
        (("dog", 1.0, 1.0), ["", "dog", ""]),  # a point
        (("dog", 3.0, 3.0), ["", "", "dog"]),
        (("cow", 0.8, 1.3), ["", "cow", ""]),  # no event of the run
    ],
)
def test_a_part_has_the_events_of_which_it_holds_enough(parts, event, expected):
    pieces = {each.part[0]: "".join(each.labels) for each in parts(3.0, event)}
    assert [pieces.get(start, "-") for start in (0, 1, 2)] == expected


def test_a_sliver_beside_enough_of_the_same_event_does_no_harm(parts, capsys):
    first, *_ = parts(3.0, ("dog", 0.1, 0.3), ("dog", 0.9, 1.5))
    assert first.labels == {"dog"}
    assert capsys.readouterr().out.splitlines()[1:] == ["cut 1 recordings of 1 into parts of 1 s"]
    assert len(parts(3.0, ("dog", 0.1, 0.3), ("cat", 0.9, 1.5))) == 2
    assert capsys.readouterr().out.splitlines()[-1] == (
        "left out 1 parts that hold less than half of an event, and less than 0.5 s of it"
    )


def test_annotations_of_timed_events_are_cut_and_moved(parts):
    first, second, third = parts(3.0, ("dog", 0.75, 1.125), ("cat", 1.5, 3), timed=True, split="train")
    assert first.annotations == (("dog", 0.75, 1.0),)
    assert second.annotations == (("dog", 0.0, 0.125), ("cat", 0.5, 1.0))
    assert third.annotations == (("cat", 0.0, 1.0),)
    assert [each.labels for each in (first, second, third)] == [{"dog"}, {"dog", "cat"}, {"cat"}]


def test_timed_events_are_scored_in_parts_that_cut_no_event(parts):
    """A cow is no event of the run, and a cut may lie where an event begins or ends."""
    labels = [("dog", 0.9, 1.5), ("cow", 1.9, 2.1), ("dog", 2.0, 3.0), ("cat", 3.5, 6.2), ("dog", 3.9, 4.1)]
    clips = parts(7.5, *labels, timed=True, split="valid")
    assert [each.part for each in clips] == [(0, 2), (2, 3), (3, 7.5)]
    times = [[(event, round(a, 6), round(b, 6)) for event, a, b in each.annotations] for each in clips]
    assert times == [
        [("dog", 0.9, 1.5), ("cow", 1.9, 2)],
        [("cow", 0, 0.1), ("dog", 0, 1)],
        [("cat", 0.5, 3.2), ("dog", 0.9, 1.1)],
    ]


def test_recordings_of_other_sources_are_not_cut(parts):
    manifest = replace(CONFIG, data=ManifestData(root="recordings", clip_seconds=1.0))
    assert [each.part for each in parts(3.0, config=manifest)] == [None]


def tree(folder):
    """Eight recordings of 2.5 s: four with a dog in the first second, four with a cat in the last."""
    rows = ["filename,onset,offset,label,split"]
    for index in range(8):
        record(folder, f"{index}.wav", noise(40_000, index))
        split = ("train", "train", "valid", "test")[index % 4]
        rows.append(f"{index}.wav,{'0.1,0.9,dog' if index < 4 else '1.6,2.5,cat'},{split}")
    (folder / "annotations.csv").write_text("\n".join(rows) + "\n")
    return with_data(CONFIG, root=str(folder))


def test_a_split_of_parts_has_their_rows_of_the_recordings_features(tmp_path):
    config = tree(tmp_path)
    clips, bad = usable_clips(config.data, FEATURES, tmp_path / "cache")
    assert not bad
    parts = cut_cached(clips, config.data, FEATURES, tmp_path / "cache", timed=False)
    data = load_split(config, parts, "test", tmp_path / "cache")
    # Of the cat's 0.9 s, the middle part holds 0.4.
    names = ["3.wav#t=0,1", "3.wav#t=1,2", "3.wav#t=1.5,2.5", "7.wav#t=0,1", "7.wav#t=1.5,2.5"]
    assert data.names == names
    assert_array_equal(data.targets, [[1, 0], [0, 0], [0, 0], [0, 0], [0, 1]])
    whole = recording_features(tmp_path / "7.wav", FEATURES)
    assert_array_equal(data.features[3], whole[:98])
    assert_array_equal(data.features[4], whole[150:248])
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 8
    scored = clips_to_score(config.data, FEATURES, tmp_path / "cache", "test", ())
    assert [clip.name for clip in scored if clip.split == "test"] == data.names


def test_parts_of_a_recording_are_computed_once(tmp_path, capsys):
    config = tree(tmp_path)
    clips, _ = usable_clips(config.data, FEATURES, tmp_path / "cache")
    parts = cut_cached(clips, config.data, FEATURES, tmp_path / "cache", timed=False)
    capsys.readouterr()
    load_split(config, parts, "train", tmp_path / "other")
    assert capsys.readouterr().out.startswith("features: computing 4 of ")


def test_timed_training_clips_have_targets_of_their_part(tmp_path):
    config = replace(tree(tmp_path), recipe=EventRecipe(strong=1, weak=0, unlabelled=0))
    clips, _ = usable_clips(config.data, FEATURES, tmp_path / "cache")
    parts = cut_cached(clips, config.data, FEATURES, tmp_path / "cache", timed=True)
    train, test = (load_split(config, parts, split, tmp_path / "cache") for split in ("train", "test"))
    assert [len(each) for each in train.features] == [98] * 12
    assert train.seconds == [1.0] * 12
    ((event, onset, offset),) = train.annotations[7]
    assert (event, offset) == ("cat", 1.0) and onset == pytest.approx(0.6)
    assert test.names == [f"{name}.wav#t={part}" for name in (3, 7) for part in ("0,1", "1,2.5")]
    assert [len(each) for each in test.features] == [98, 148] * 2 and test.seconds == [1.0, 1.5] * 2


def test_events_without_length_are_refused_for_timed_events(tmp_path):
    config = replace(tree(tmp_path), recipe=EventRecipe(strong=1, weak=0, unlabelled=0))
    with open(tmp_path / "annotations.csv", "a") as file:
        file.write("0.wav,1.25,1.25,dog,train\n")
    clips, _ = usable_clips(config.data, FEATURES, tmp_path / "cache")
    fault = "expected an offset after the onset for timed events, found dog from 1.25 to 1.25 s"
    with refused_exactly(f"{tmp_path}/0.wav: {fault}"):
        load_split(config, clips, "train", tmp_path / "cache")


def test_an_onset_after_the_end_is_a_fault_of_that_recording_alone(tmp_path):
    config = tree(tmp_path)
    with open(tmp_path / "annotations.csv", "a") as file:
        file.write("5.wav,70,71,dog,train\n")
    fault = f"{tmp_path}/5.wav: expected onsets before the end (2.5 s), found dog at 70 s"
    lines = ["1 of 8 recordings can't be used:", f"  {fault}", "to skip them: --data.skip-bad"]
    with refused_exactly("\n".join(lines)):
        usable_clips(config.data, FEATURES, tmp_path / "cache")
    clips, bad = usable_clips(replace(config.data, skip_bad=True), FEATURES, tmp_path / "cache")
    assert len(clips) == 7 and bad == [fault]


def test_recordings_of_many_lengths_share_the_rule_at_other_hops(tmp_path):
    """The rows of each part are there and as many as a model reads, for hops that don't divide a clip."""
    features = FeatureConfig(n_mels=8, win_length=400, hop_length=144)
    data = replace(CONFIG.data, clip_seconds=0.37)
    frames = features.frames(round(0.37 * 16_000))
    for samples in (5_000, 6_500, 11_840, 17_000, 29_999):
        recording = record(tmp_path, f"{samples}.wav", noise(samples), annotations=())
        log_mel = recording_features(recording.path, features)
        for timed in (False, True):
            parts = cut_cached(
                [replace(recording, split="train")], data, features, tmp_path / "cache", timed=timed
            )
            lengths = [len(log_mel[rows_of(part, features)]) for part in parts]
            cut_into = parts[0].part is not None
            assert min(lengths) >= frames if len(log_mel) >= frames else lengths == [len(log_mel)]
            assert not (timed and cut_into) or set(lengths) == {frames}


def test_unlabelled_recordings_are_cut_into_unlabelled_parts(tmp_path):
    recording = record(tmp_path, "a.wav", noise(40_000), labelled=False, split="train", annotations=None)
    clip = replace(recording, name=f"{UNLABELLED}a.wav", file="a.wav")
    data = ManifestData(root="elsewhere", clip_seconds=1.0)
    parts = cut_cached([clip], data, FEATURES, tmp_path / "cache", timed=False)
    assert [part.name for part in parts] == [f"{UNLABELLED}a.wav#t={t}" for t in ("0,1", "1,2", "1.5,2.5")]
    assert all(not part.labelled and part.annotations is None and part.path == clip.path for part in parts)
    write_clips(tmp_path / "clips.jsonl", parts)
    assert read_clip_list(tmp_path / "clips.jsonl", tmp_path / "other", tmp_path) == parts


def begun(config, folder):
    """The run of `config`, begun but not trained."""
    with open_run(replace(config, runs=str(folder / "runs"))) as run:
        return run


def test_a_run_of_clips_divides_recordings_with_label_tracks_by_their_parts(tmp_path, capsys):
    for index in range(12):
        record(tmp_path, f"{index}.wav", noise(40_000, index))
        track = "0.1\t0.9\tdog\n" if index % 2 else ""
        (tmp_path / f"{index}.txt").write_text(track)
    data = AudacityData(root=str(tmp_path), clip_seconds=1.0, negatives=20)
    run = begun(replace(CONFIG, data=data), tmp_path)
    clips = run.clips
    assert len(clips) == 6 + 20 and sum(clip.labels == {"dog"} for clip in clips) == 6
    assert len({(clip.group, clip.split) for clip in clips}) == len({clip.group for clip in clips}) == 12
    lines = capsys.readouterr().out.splitlines()
    assert "cut 12 recordings of 12 into parts of 1 s" in lines
    for split in SPLITS:
        dataset = load_split(run.config, clips, split, run.cache)
        assert {len(features) for features in dataset.features} == {98}


def test_timed_models_with_teachers_train_on_long_recordings(tmp_path, monkeypatch):
    """Before, these had to be as short as a clip."""
    monkeypatch.setattr(events, "load_sed_scores_eval", lambda: None)  # an extra, not needed to load
    teacher = ModelConfig(network=LSTMConfig(convolutions=(2,), time_strides=1, hidden_size=2))
    models = {"teacher": teacher, "student": replace(teacher, teachers=("teacher",))}
    recipe = EventRecipe(strong=1, weak=0, unlabelled=0)
    run = begun(replace(tree(tmp_path), recipe=recipe, models=models), tmp_path)
    data = events.load(run)
    assert len(data["train"].names) == 12 and len(data["test"].names) == 4


def test_embeddings_of_a_part_are_those_of_its_time():
    rows = np.arange(26, dtype=np.float32)[:, None]
    whole = clip("a.wav")
    part = replace(whole, name="a.wav#t=1,2", file="a.wav", part=(1.0, 2.0))
    assert_array_equal(_of_part(whole, rows, 0.1), rows)
    assert_array_equal(_of_part(part, rows, 0.1), rows[10:21])


def test_an_exported_file_gets_the_samples_of_each_part(tmp_path):
    waveform = noise(40_000)
    recording = record(tmp_path, "a.wav", waveform, annotations=())
    parts = cut_cached([recording], CONFIG.data, FEATURES, tmp_path / "cache", timed=False)
    inputs = []
    exported = Exported(
        events=("dog",),
        features=FEATURES,
        clip_seconds=1.0,
        clip_logits=lambda samples: inputs.append(samples) or np.zeros(1, np.float32),
    )
    assert _logits(exported, parts, None).shape == (3, 1)
    for samples, start in zip(inputs, (0, 16_000, 24_000)):
        assert_array_equal(samples, waveform[start : start + 16_000])


def test_parts_of_a_recording_of_the_run_keep_its_split(tmp_path):
    config = tree(tmp_path)
    clips, _ = usable_clips(config.data, FEATURES, tmp_path / "cache")
    own = cut_cached(clips, config.data, FEATURES, tmp_path / "cache", timed=False)
    (tmp_path / "more.csv").write_text("filename,onset,offset,label\n3.wav,0.1,0.9,dog\n8.wav,1.6,2.5,cat\n")
    record(tmp_path, "8.wav", noise(40_000, 8))
    data = replace(config.data, table="more.csv")
    scored = clips_to_score(data, FEATURES, tmp_path / "cache", "valid", own)
    assert {(clip.file, clip.split) for clip in scored} == {("3.wav", "test"), ("8.wav", "valid")}
    assert all(clip.part for clip in scored)


def test_recordings_of_a_runs_unlabelled_folder_are_not_scored_as_new(tmp_path, capsys):
    config, more = tree(tmp_path), tmp_path / "more"
    data = replace(config.data, unlabelled=str(more))
    for folder, name in itertools.product((more, tmp_path / "copy"), ("0.wav", "1.wav")):
        folder.mkdir(exist_ok=True)
        record(folder, name, noise(40_000, int(name[0])))
    record(tmp_path / "copy", "1.wav", noise(32_000))  # another recording of that name
    own, _ = usable_clips(data, FEATURES, tmp_path / "cache")
    own = cut_cached(own, data, FEATURES, tmp_path / "cache", timed=False)
    for folder, expected in ((more, ["train", "train"]), (tmp_path / "copy", ["train", "test"])):
        table = "filename,onset,offset,label\n0.wav,0.1,0.9,dog\n1.wav,0.6,0.9,cat\n"
        (folder / "annotations.csv").write_text(table)
        others = replace(data, root=str(folder))
        own_unlabelled = [clip for clip in own if not clip.labelled]
        scored = clips_to_score(others, FEATURES, tmp_path / "cache", "test", own_unlabelled)
        assert [splits for _, splits in sorted({(clip.file, clip.split) for clip in scored})] == expected
        line = (
            f"{expected.count('train')} of 2 recordings are among the run's unlabelled ones and stay in train"
        )
        assert line in capsys.readouterr().out.splitlines()


def test_negatives_of_timed_labels_are_counted_in_clips(tmp_path):
    data = replace(tree(tmp_path).data, negatives=5, events=("cat",))
    assert len(read_clips(replace(data, negatives=2))) == 8  # not yet cut
    for timed in (False, True):
        scored = clips_to_score(data, FEATURES, tmp_path / "cache", "test", (), timed=timed)
        assert sum(clip.labels.isdisjoint({"cat"}) for clip in scored) == 5


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"file": "../a.wav"}, "file: expected a path within --data.root, got '../a.wav'"),
        ({"file": "a.wav", "part": [2.0, 1.0]}, "part: expected a start, then an end, found (2.0, 1.0)"),
        ({"file": "a.wav", "part": [-1.0, 1.0]}, "part.0: expected at least 0, got -1.0"),
    ],
)
def test_a_wrong_part_in_a_list_of_clips_is_named(tmp_path, fields, fault):
    row = {"name": "a", "labels": [], "group": "", "split": None, "annotations": None, "labelled": True}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row | fields) + "\n")
    with refused(re.escape(f"expected a run's clips.jsonl: line 1: {fault}")):
        read_clip_list(tmp_path / "clips.jsonl", tmp_path)
