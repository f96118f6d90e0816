"""Events found and false alarms, and thresholds at equal recall, by hand."""

import dataclasses

import numpy as np
import pytest
import soundfile

from experiments import detection
from experiments.detection import at_recall, detections, found_and_false, read_scenes
from qkd_jax.commands.cli import run_command
from qkd_jax.detector import file
from qkd_jax.detector.events import Event, event_rule
from tests.detectors import PLAIN, random_detector

DOG = np.array([[10.0, 11.0], [20.0, 22.0], [30.0, 30.5], [40.0, 41.0]])


def detected(onset, offset, event="dog"):
    return Event(event=event, onset=onset, offset=offset, peak=0.9)


def test_found_and_false_alarms_by_hand():
    detections = [
        detected(8.0, 9.5),  # ends half a second before the first
        detected(21.0, 21.1),  # within the second, twice
        detected(21.5, 21.6),
        detected(28.0, 29.4),  # ends more than half a second before the third
        detected(35.0, 36.0),  # nowhere
        detected(10.0, 11.0, "gunshot"),
    ]
    references = {"dog": DOG, "gunshot": np.array([[10.0, 10.2]])}
    assert found_and_false(detections, references) == {"dog": (0.5, 2), "gunshot": (1.0, 0)}


def test_thresholds_are_the_highest_that_find_enough():
    detector = random_detector(PLAIN)  # steps of 10 ms, the first at 12.5 ms
    detector = dataclasses.replace(detector, events=("dog",))
    logits = np.full((5000, 1), -8.0, np.float32)
    for peak, (onset, offset) in zip([4, 3, 2, 1], DOG):
        logits[round(onset * 100) : round(offset * 100)] = peak
    for peak, onset in ((3.5, 5), (2.5, 15), (1.5, 25)):  # where nothing is
        logits[onset * 100 : onset * 100 + 20] = peak
    for recall, false in ((0.25, 0), (0.5, 1), (0.75, 2), (1.0, 3)):
        [(share, count)] = at_recall(detector, logits, {"dog": DOG}, recall).values()
        assert (share, count) == (recall, false)


def test_scenes_follow_each_other(tmp_path):
    lines = [
        "filename\tonset\toffset\tevent_label",
        "b.flac\t1\t2\tdog",
        "a.flac\t3\t4.5\tdog",
        "a.flac\t0\t1\tcat",
    ]
    (tmp_path / "strong.tsv").write_text("\n".join(lines) + "\n")
    [(event, times)] = read_scenes(tmp_path, ["a.flac", "b.flac"], 10.0, ["dog"]).items()
    assert event == "dog"
    np.testing.assert_allclose(times, [[11, 12], [3, 4.5]])


def test_a_whole_stream_has_events_of_every_class():
    detector = random_detector(PLAIN)
    logits = np.random.default_rng(0).normal(0, 3, (400, 3)).astype(np.float32)
    over = detections(event_rule(detector), logits)
    assert len(over) > 10 and {event.event for event in over} == set(detector.events)


def test_the_command_streams_scenes_and_prints_both_tables(tmp_path, capsys):
    detector = dataclasses.replace(random_detector(PLAIN), clip_seconds=1.0)
    points = {"eer": dict.fromkeys(detector.events, 0.6)}
    config = dataclasses.replace(detector.event_config, thresholds=points, use="eer")
    file.save(dataclasses.replace(detector, event_config=config), tmp_path / "d.safetensors")
    rng, folder = np.random.default_rng(0), tmp_path / "test"
    (folder / "audio").mkdir(parents=True)
    lines = ["filename\tonset\toffset\tevent_label"]
    for index in range(3):
        soundfile.write(folder / "audio" / f"{index}.flac", rng.normal(0, 0.1, 16_000), 16_000)
        lines.append(f"{index}.flac\t0.2\t0.6\t{detector.events[index]}")
    (folder / "strong.tsv").write_text("\n".join(lines) + "\n")
    arguments = [str(tmp_path), str(tmp_path / "d.safetensors"), "--out", str(tmp_path / "figures.json")]
    assert run_command(detection.main, arguments) == 0
    output = capsys.readouterr().out
    assert "0.00 hours with 1 dog, 1 baby_cry, 1 gunshot" in output
    assert output.count("| all |") == 3 and output.count("| 5 s |") == 3 and "| eer | " in output
    assert (tmp_path / "figures.json").is_file()
    assert run_command(detection.main, [str(tmp_path), str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("recall", [0.3, 0.9])
def test_more_recall_never_has_fewer_false_alarms(recall):
    detector = dataclasses.replace(random_detector(PLAIN), events=("dog",))
    logits = np.random.default_rng(1).normal(0, 2, (5000, 1)).astype(np.float32)
    [(share, false)] = at_recall(detector, logits, {"dog": DOG}, recall).values()
    [(_, more)] = at_recall(detector, logits, {"dog": DOG}, min(recall + 0.1, 1)).values()
    assert share >= recall and more >= false
