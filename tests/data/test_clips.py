import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from qkd_jax.config import ManifestData
from qkd_jax.data import clips as clips_module
from qkd_jax.data.clips import SPLITS, Annotation, divide, read_clip_list, summary, targets, with_splits
from qkd_jax.data.sources.manifest import read_manifest
from tests.faults import refused
from tests.recordings import clip, traced


def test_targets_follow_the_order_of_clips_and_events():
    clips = [clip("a", {"dog"}), clip("b"), clip("c", {"siren", "dog", "cat"})]
    assert_array_equal(targets(clips, ("siren", "dog")), [[0, 1], [0, 0], [1, 1]])
    unlabelled = clip("d", labelled=False)
    assert_array_equal(targets([*clips, unlabelled], ("siren",)), [[0], [0], [1], [0]])
    assert targets([], ("siren", "dog")).shape == (0, 2)
    assert targets(clips, ()).shape == (3, 0)


@given(st.lists(st.tuples(st.sets(st.sampled_from("xyz")), st.sampled_from("abcdefgh")), max_size=40))
@settings(max_examples=60, deadline=None)
def test_every_clip_gets_a_split_and_no_group_is_in_two(kinds):
    clips = [clip(str(index), labels, group=group) for index, (labels, group) in enumerate(kinds)]
    divided = divide(clips)
    # Nothing but the split changes, not even the order.
    assert [(c.name, c.labels, c.group) for c in divided] == [(c.name, c.labels, c.group) for c in clips]
    assert {c.split for c in divided} <= set(SPLITS)
    assert len({(c.group, c.split) for c in divided}) == len({c.group for c in clips})


def scenes(seed, largest_group):
    """400 clips in groups of 1 to `largest_group`, with a common event, a rare one, and a very rare one."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(400), rng.integers(1, largest_group + 1, 400))[:400]
    odds = {"speech": 0.4, "dog": 0.1, "gunshot": 0.05}
    return [
        clip(str(index), {event for event, share in odds.items() if rng.random() < share}, group=f"g{group}")
        for index, group in enumerate(groups)
    ]


@pytest.mark.parametrize("largest_group", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_each_event_is_divided_70_10_20(seed, largest_group):
    clips = divide(scenes(seed, largest_group))
    for event in ("speech", "dog", "gunshot"):
        splits = [c.split for c in clips if event in c.labels]
        for split, share in zip(SPLITS, (0.7, 0.1, 0.2)):
            # Groups stay whole: a tolerance of a clip or two for each set of labels with the event.
            assert abs(splits.count(split) - share * len(splits)) <= 4, (event, split)
    splits = [c.split for c in clips]
    assert [splits.count(split) / len(clips) for split in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_division_is_the_same_in_every_process_and_differs_by_seed():
    clips = [clip(f"clip-{index}", {"dog"} if index % 2 else ()) for index in range(20)]
    # Written down, since a resumed run must get the splits that it began with.
    assert "".join(c.split[1] for c in divide(clips)) == "raeerrrrrerrerrrarrr"
    assert divide(clips, seed=1) != divide(clips)
    # Shares can be chosen.
    splits = [c.split for c in divide(scenes(0, 1), shares=(0.5, 0.5, 0.0))]
    assert splits.count("test") == 0 and splits.count("train") == pytest.approx(200, abs=4)


def test_a_division_is_balanced_by_events_alone():
    # Every clip has another label beside the event, so no two sets of labels are equal.
    clips = [clip(str(index), {f"x{index}", *(["dog"] if index % 5 == 0 else [])}) for index in range(500)]
    divided = divide(clips, ("dog",))
    dogs = [c.split for c in divided if "dog" in c.labels]
    assert [dogs.count(split) for split in SPLITS] == [70, 10, 20]
    assert {c.labels for c in divided} == {c.labels for c in clips}


def test_a_division_keeps_unlabelled_clips_and_negatives_apart():
    negatives = [clip(f"negative {index}") for index in range(30)]
    unlabelled = [clip(f"unknown {index}", labelled=False) for index in range(200)]
    for chosen in (negatives, unlabelled):
        for events in ((), ("dog",)):
            divided = divide([*negatives, clip("dog", {"dog"}), *unlabelled], events)
            splits = {c.name: c.split for c in divided}
            counts = Counter(splits[c.name] for c in chosen)
            assert [counts[split] / len(chosen) for split in SPLITS] == [0.7, 0.1, 0.2]


def test_splits_of_a_source_are_kept_unless_they_divide_a_group():
    kinds = ("a", "s1", "train"), ("b", "s2", "valid"), ("c", "s1", "train")
    clips = [clip(name, group=group, split=split) for name, group, split in kinds]
    assert with_splits(clips, ()) == clips
    clips.append(clip("d", group="s1", split="test"))
    with refused("group 's1' in one split, found a in train and d in test"):
        with_splits(clips, ())


def test_a_list_of_clips_is_written_and_read_unchanged(tmp_path):
    dog, annotations = "Hund; läut", (Annotation("Hund; läut", 0.1, 1 / 3), Annotation("x", 0, 1e-9))
    labels = {"Baby cry, infant cry", dog}
    clips = [
        clip("a b.wav", labels, tmp_path, group="s1", split="train", annotations=annotations),
        clip("ü/\n.wav", (), tmp_path, group="犬", annotations=()),
        clip("c\u2028.wav", {"x"}, tmp_path, group="g", split="test"),
        clip("d", (), tmp_path, group="犬", labelled=False),
    ]
    clips_module.write_clips(tmp_path / "clips.jsonl", clips)
    assert read_clip_list(tmp_path / "clips.jsonl", tmp_path) == clips
    assert read_clip_list(tmp_path / "clips.jsonl", tmp_path)[0].annotations[0].onset == 0.1
    moved = read_clip_list(tmp_path / "clips.jsonl", Path("/elsewhere"))
    assert moved[0].path == Path("/elsewhere/a b.wav")


ROW = {"name": "a", "labels": [], "group": "", "split": None, "annotations": None, "labelled": True}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "expected valid JSON"),
        ("[]\n", "expected a JSON object"),
        ("null\n", "expected a JSON object"),
        ('{"a": ' * 100_000, "expected valid JSON"),
        ('{"name": "a"}\n', "labels: expected a value"),
        ('{"name": "a", "labels": [], "group": "", "split": null}\n', "annotations: expected a value"),
        (ROW | {"name": 1}, "name: expected text"),
        (ROW | {"labels": "dog"}, "labels: expected a list"),
        (ROW | {"split": "tset"}, "split: expected 'train', 'valid' or 'test'"),
        (ROW | {"annotations": [["dog", 1]]}, r"annotations\.0\.2: expected a value"),
        (ROW | {"annotations": [["dog", 0, 1e300]]}, r"annotations\.0\.2: expected at most"),
        (ROW | {"name": "../a"}, "name: expected a path within"),
        (ROW | {"name": "/etc/a"}, "name: expected a path within"),
        (ROW | {"name": "b/../../a"}, "name: expected a path within"),
        (ROW | {"name": "a\0b"}, "name: expected a path within"),
    ],
)
def test_the_line_of_a_list_that_is_not_a_clip_is_named(tmp_path, text, error):
    text = text if isinstance(text, str) else f"{json.dumps(ROW)}\n{json.dumps(text)}\n"
    (tmp_path / "clips.jsonl").write_text(text)
    place = rf"clips\.jsonl: expected a run's clips.jsonl: line {text.count(chr(10)) or 1}"
    with refused(f"{place}: {error}"):
        read_clip_list(tmp_path / "clips.jsonl", tmp_path)
    (tmp_path / "clips.jsonl").write_bytes(b"\xff\n")
    with refused(r"clips\.jsonl: expected a run's clips.jsonl: 'utf-8' codec"):
        read_clip_list(tmp_path / "clips.jsonl", tmp_path)


def test_the_summary_counts_events_kinds_and_other_labels():
    kinds = {"train": ["dog", "dog cat"], "valid": ["dgo"], "test": ["", "cat"]}
    clips = [clip("a", each.split(), split=split) for split, labels in kinds.items() for each in labels]
    assert summary(clips, ("dog",)).splitlines() == [
        "recordings: 2 train, 1 valid, 2 test",
        "  dog: 2 train, 0 valid, 0 test",
        "  labels that are not events (a recording with only these is a negative): cat (2), dgo (1)",
    ]
    clips.append(clip("a", {"dog"}, split="train", annotations=(Annotation("dog", 0, 1),)))
    clips.append(clip("b", split="train", labelled=False))
    assert summary(clips, ("dog",)).splitlines()[:5] == [
        "recordings: 4 train, 1 valid, 2 test",
        "  strong: 1 train, 0 valid, 0 test",
        "  weak: 2 train, 1 valid, 2 test",
        "  unlabelled: 1 train, 0 valid, 0 test",
        "  dog: 3 train, 0 valid, 0 test",
    ]
    many = [clip(str(index), {f"label {index}"}, split="test") for index in range(12)]
    assert summary(many, ()).endswith("label 9 (1) and 2 more")
    # Labels can't break a line.
    each = [clip(f"{index}", {f"event {index % 9}"}, split="train") for index in range(85)]
    assert summary(each, [f"event {index}" for index in range(9)]).splitlines() == [
        "recordings: 85 train, 0 valid, 0 test",
        *(f"  event {index}: 9 train, 0 valid, 0 test" for index in (4, 5, 6, 7, 8)),
        "  4 more events, with up to 10 train",
    ]
    lines = summary([clip("a", {"x\n\x1b[2J", "\u2028"}, split="train")], ("x\n\x1b[2J",)).splitlines()
    assert len(lines) == 3 and all(line.isprintable() for line in lines)


def test_each_of_many_clips_takes_little_memory(tmp_path):
    count = 1000
    rows = (f"audio/{index:06}.wav,{('dog', 'cat;dog', '')[index % 3]}\n" for index in range(count))
    (tmp_path / "metadata.csv").write_text("filename,labels\n" + "".join(rows))

    def held(make):
        made, size, _ = traced(make)
        assert len(made) == count
        return size / count

    config = ManifestData(root=str(tmp_path), events=("dog",))
    assert held(lambda: read_manifest(config)) < 300
    clips = with_splits(read_manifest(config), ("dog",))
    clips_module.write_clips(tmp_path / "clips.jsonl", clips)
    assert held(lambda: read_clip_list(tmp_path / "clips.jsonl", tmp_path)) < 300
