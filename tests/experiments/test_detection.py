"""Events found and false alarms, and thresholds at equal recall, by hand."""

import dataclasses

import numpy as np
import soundfile

from experiments import detection
from experiments.detection import at_recall, found_and_false
from qkd_jax.commands.cli import run_command
from qkd_jax.detector import file
from qkd_jax.detector.events import Event
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
    arguments = [str(tmp_path), str(tmp_path / "d.safetensors")]
    assert run_command(detection.main, arguments) == 0
    output = capsys.readouterr().out
    assert "0.00 hours with 1 dog, 1 baby_cry, 1 gunshot" in output
    assert output.count("| all |") == 3 and output.count("| 5 s |") == 3 and "| eer | " in output
    assert run_command(detection.main, [str(tmp_path), str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err
