"""The speed of preset small's updates: which processes are compared, and what they print."""

import json
import subprocess
import sys

import pytest

from benchmarks.common import ROOT
from benchmarks.speed import student


def test_each_student_is_timed_in_turns_with_one_device(monkeypatch):
    asked = []

    def seconds(name, how):
        asked.append((name, how))
        return {"cores": 0.25, "device": 0.75}[how]

    monkeypatch.setattr(student, "_seconds", seconds)
    rows = list(student.rows(2))
    assert asked == [
        (name, how) for name in student.NETWORKS.values() for how in ("cores", "device", "cores", "device")
    ]
    assert [(row.times_as_fast[0], row.met, row.note) for row in rows] == [(3.0, True, "128 clips/s")] * 3


@pytest.mark.slow
def test_a_process_prints_the_seconds_of_each_update():
    command = [sys.executable, "-m", "benchmarks.speed.student", "distilled", "cores", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = json.loads(done.stdout)
    assert 0 < first < 60 and 0 < second < 60
