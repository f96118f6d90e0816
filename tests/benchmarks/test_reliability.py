"""Kills are assigned to phases, the soak notices drift, and the page is that of the tallies."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from benchmarks.common import RESULTS, filled
from benchmarks.reliability import page, soak
from benchmarks.reliability.kills import EXPORTED, LAST_STEP, phase
from benchmarks.reliability.soak import Found, Sound, by_block, compared, main, mixture, printed, soaked
from qkd_jax.config import Clock, EventConfig
from qkd_jax.detector import file
from qkd_jax.errors import InputError
from tests.detector.test_events import medians
from tests.detectors import FRONT, random_detector

CLOCK = Clock(0.5, 0.1)
# Prints the bytes that come, and ends by SIGTERM as the detect command does.
ECHO = """
import os, select, signal, sys
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
while not stopped:
    if select.select([0], [], [], 0.05)[0]:
        data = os.read(0, 4096)
        if not data:
            sys.exit(int(sys.argv[1]))
        print(data.decode(), flush=True)
sys.exit(130)
"""


def line(event, first, last, peak=0.9):
    begin = CLOCK.first - CLOCK.step / 2
    onset, offset = round(begin + first * CLOCK.step, 3), round(begin + (last + 1) * CLOCK.step, 3)
    return json.dumps({"file": "-", "event": event, "onset": onset, "offset": offset, "peak": peak})


def test_the_sound_repeats_and_is_cut_anywhere():
    sound = Sound(b"abcde", 1, 13)
    whole = b"abcdeabcdeabc"
    assert list(sound.part(0, 13)) == [b"abcde", b"abcde", b"abc"]
    for begin in range(14):
        for end in range(begin, 14):
            assert b"".join(sound.part(begin, end)) == whole[begin:end]


def test_the_mixture_is_as_long_as_asked_and_the_same_again():
    samples = np.frombuffer(mixture(20, 16_000, 0), "<i2")
    assert len(samples) == 20 * 16_000 and samples.max() > 5000
    assert mixture(20, 16_000, 0) == samples.tobytes() != mixture(20, 16_000, 1)


def test_events_belong_to_the_block_in_which_they_end():
    sound = Sound(bytes(8), 100, 8 * 3 + 2)
    lines = [("a", 3, 9), ("b", 98, 101), ("a", 103, 109), ("b", 198, 201), ("c", 290, 299), ("a", 303, 309)]
    assert by_block([line(*event) for event in lines], CLOCK, sound) == [
        [Found("a", 3, 9, 0.9)],
        [Found("b", -2, 1, 0.9), Found("a", 3, 9, 0.9)],
        [Found("b", -2, 1, 0.9), Found("c", 90, 99, 0.9)],
    ]


def test_differing_events_are_counted():
    expected = [Found("a", 0, 9, 0.5), Found("a", 20, 29, 0.5), Found("b", 40, 49, 0.5)]
    found = [Found("a", 0, 9, 0.5), Found("a", 29, 35, 0.5), Found("a", 40, 49, 0.5)]
    assert compared(found, expected) == {"same": 1, "missed": 1, "more": 1}
    assert compared(expected, expected) == {"same": 3, "missed": 0, "more": 0}


def test_processes_take_turns_at_one_pipe():
    # More than a pipe holds: when all is written, the process is at it.
    parts, watched = [[b"0123456789" * 10_000, b"a"], [b"bcdefghij" * 10_000], [b"klmnopqrst"]], []
    lines = printed([sys.executable, "-c", ECHO, "0"], parts, watched.append)
    assert "".join(lines).replace("\n", "") == b"".join(b"".join(part) for part in parts).decode()
    assert len(watched) == 4 and len(set(watched)) == 3


def test_a_process_that_ends_badly_is_named():
    with pytest.raises(InputError, match=r"expected status 0, got 3: \[\]"):
        printed([sys.executable, "-c", ECHO, "3"], [[b"0123456789"]])
    broken = [sys.executable, "-c", "raise SystemExit('no model')"]
    for parts in ([[bytes(1 << 20)]], [[bytes(1 << 20)], [b""]]):
        with pytest.raises(InputError, match=r"expected status (0|130), got 1: \['no model'\]"):
            printed(broken, parts)


def test_drift_growth_and_other_lines_are_noticed(monkeypatch):
    sound = Sound(bytes(8), 100, 8 * 4 + 2)
    lines = [line("a", 100 * block + 3, 100 * block + 9) for block in range(5)]
    again, tally = lines[:4], {"memory_kB": [5000] * 4, "cpu_seconds": 2.0}  # the last was not yet over
    monkeypatch.setattr(soak, "undisturbed", lambda command, sound: (lines, tally))
    monkeypatch.setattr(soak, "in_pieces", lambda command, sound, seed: (again, 9))

    def tried():
        return soaked([], CLOCK, sound, [Found("a", 3, 9, 0.9)], 0)

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
def test_a_small_soak(tmp_path, capsys):
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
    asked = [
        "--model",
        str(tmp_path / "model.safetensors"),
        "--hours",
        "0.1",
        "--block",
        "60",
        "--runtimes",
        *runtimes,
    ]
    main([*asked, "--out", str(tmp_path)])
    tally = json.loads((tmp_path / "soak.json").read_text())
    assert list(tally["runtimes"]) == runtimes and "| numpy |" in capsys.readouterr().out
    numpy = tally["runtimes"]["numpy"]
    assert numpy["beside_numpy"] == {"same": numpy["events_in_block"], "missed": 0, "more": 0}
    assert numpy["events_in_block"] > 5 and numpy["processes"] == 9
    written = (tmp_path / "soak.json").stat().st_mtime_ns
    main([*asked, "--out", str(tmp_path)])
    assert (tmp_path / "soak.json").stat().st_mtime_ns == written


def test_a_run_is_in_the_phase_that_it_has_not_finished(tmp_path):
    def folder(name):
        (tmp_path / name).mkdir(parents=True)

    def written(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert phase(tmp_path, printed=False) == "recordings"
    written(".features/00/1.npy")
    assert phase(tmp_path, printed=False) == "features"
    written("demo/config.json")
    assert phase(tmp_path, printed=False) == "start, again"
    assert phase(tmp_path, printed=True) == "steps"
    folder("demo/models/teacher/checkpoints/6.orbax-checkpoint-tmp-1")
    assert phase(tmp_path, printed=True) == "a checkpoint"
    assert phase(tmp_path, printed=False) == "start, again"
    folder(f"demo/models/{EXPORTED}/checkpoints/{LAST_STEP}")
    assert phase(tmp_path, printed=False) == "evaluation"
    written("demo/results.json")
    assert phase(tmp_path, printed=False) == "report"
    written("demo/report.html")
    assert phase(tmp_path, printed=False) == "export"


def test_the_page_is_that_of_the_committed_tallies():
    text = (RESULTS / "reliability.md").read_text()
    assert filled(text, page.parts(RESULTS / "reliability")) == text
