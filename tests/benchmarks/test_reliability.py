"""The soak notices drift and growth, and the page is that of the tallies."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from benchmarks.common import RESULTS, filled
from benchmarks.reliability import page, soak
from benchmarks.reliability.soak import Found, Sound, by_block, main, mixture, soaked
from qkd_jax.config import Clock, EventConfig
from qkd_jax.detector import file
from qkd_jax.errors import InputError
from tests.detector.test_events import medians
from tests.detectors import FRONT, random_detector

CLOCK = Clock(0.5, 0.1)


def line(event, first, last, peak=0.9):
    begin = CLOCK.first - CLOCK.step / 2
    onset, offset = round(begin + first * CLOCK.step, 3), round(begin + (last + 1) * CLOCK.step, 3)
    return json.dumps({"file": "-", "event": event, "onset": onset, "offset": offset, "peak": peak})


def test_events_belong_to_the_block_in_which_they_end():
    sound = Sound(bytes(8), 100, 8 * 3 + 2)
    lines = [("a", 3, 9), ("b", 98, 101), ("a", 103, 109), ("b", 198, 201), ("c", 290, 299), ("a", 303, 309)]
    assert by_block([line(*event) for event in lines], CLOCK, sound) == [
        [Found("a", 3, 9, 0.9)],
        [Found("b", -2, 1, 0.9), Found("a", 3, 9, 0.9)],
        [Found("b", -2, 1, 0.9), Found("c", 90, 99, 0.9)],
    ]


def test_drift_growth_and_other_lines_are_noticed(monkeypatch):
    sound = Sound(bytes(8), 100, 8 * 4 + 2)
    lines = [line("a", 100 * block + 3, 100 * block + 9) for block in range(5)]
    again, tally = lines[:4], {"memory_kB": [5000] * 4, "cpu_seconds": 2.0}  # the last was not yet over
    monkeypatch.setattr(soak, "undisturbed", lambda command, sound: (lines, tally))
    monkeypatch.setattr(soak, "in_pieces", lambda command, sound: (again, 9))

    def tried():
        return soaked([], CLOCK, sound, [Found("a", 3, 9, 0.9)])

    assert tried()["beside_numpy"] == {"same": 1, "missed": 0, "more": 0}
    assert tried()["times_real_time"] == 20 and tried()["blocks_alike"] == 3
    for again in ([], lines[1:], lines[:3], [*lines[:3], lines[0]]):  # noqa: B007
        with pytest.raises(InputError, match="in pieces: expected the 5 lines of one process, found"):
            tried()
    again, tally["memory_kB"] = lines[:4], [5000, 5000, 5000, 10_000]
    with pytest.raises(InputError, match="found growth by 5000 kB after the first hour"):
        tried()
    tally["memory_kB"], lines[3] = [5000] * 4, line("a", 303, 309, 0.9000001)
    with pytest.raises(InputError, match=r"hour 4: expected the events of hour 2, found others"):
        tried()


@pytest.mark.slow
def test_a_small_soak(tmp_path, capsys, monkeypatch):
    """With a detector that forgets within its block of a minute."""
    detector = random_detector(FRONT)
    lstm = tuple(
        layer._replace(multiplier_h=layer.multiplier_h / 4, cell_exponent=13) for layer in detector.lstm
    )
    detector = dataclasses.replace(detector, lstm=lstm)
    samples = np.frombuffer(mixture(60, 16_000, 0), "<i2").astype(np.float32) / 32768
    config = EventConfig(thresholds={"x": medians(detector, samples)}, use="x", end=1.0)
    file.save(dataclasses.replace(detector, event_config=config), tmp_path / "model.safetensors")
    runtimes = ["numpy", *(["c"] if shutil.which("cc") else [])]
    monkeypatch.setattr(soak, "HOUR", 60)
    asked = ["--model", str(tmp_path / "model.safetensors"), "--hours", "3", "--out", str(tmp_path)]
    main([*asked, "--runtimes", *runtimes])
    tally = json.loads((tmp_path / "soak.json").read_text())
    assert list(tally["runtimes"]) == runtimes and "| numpy |" in capsys.readouterr().out
    numpy = tally["runtimes"]["numpy"]
    assert numpy["beside_numpy"] == {"same": numpy["events_in_block"], "missed": 0, "more": 0}
    assert numpy["events_in_block"] > 5 and numpy["processes"] == 9


def test_the_page_is_that_of_the_committed_tallies():
    text = (RESULTS / "reliability.md").read_text()
    assert filled(text, page.parts(RESULTS / "reliability")) == text
