"""The harness tells how a reader ends, and every reader reads or refuses dozens of damaged files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = 40
TARGETS = {"recordings", "compressed", "manifest", "audioset", "esc50", "desed", "logits", "step logits"}
TARGETS |= {"features", "run arrays", "checkpoints", "clip list", "log", "config", "tagger", "state"}
TARGETS |= {"ONNX teacher", "LiteRT teacher", "LiteRT layer"}
TARGETS |= {"exported .onnx", "exported .tflite", "exported .h", "exported .safetensors"}
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded on Linux")


def run(tmp_path, *command):
    """The output of Python in a process without threads, which may be forked."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_every_reader_reads_or_refuses_what_is_damaged(tmp_path):
    run(tmp_path, "-m", "benchmarks.reliability.fuzz", "--inputs", str(FEW), "--seed", "2", "--out", ".")
    kept = json.loads((tmp_path / "fuzz.json").read_text())
    tallies = kept["targets"].values()
    assert TARGETS - set(kept["targets"]) <= {"exported .tflite"}  # whose converter is hard to install
    assert {tally["inputs"] for tally in tallies} == {FEW}
    ends = {end for tally in tallies for end in tally["ends"]}
    assert {"read", "refused"} <= ends <= {"read", "refused", "crash caught"}
    assert not (tmp_path / "fuzzed").exists()


HARNESS = """
import json, os, signal, sys, time
from pathlib import Path
from benchmarks.reliability import fuzz
from benchmarks.reliability.fuzz_targets import Target
from qkd_jax.errors import InputError

def die(folder):
    os.kill(os.getpid(), signal.SIGSEGV)

def refuse(folder, words="no"):
    raise InputError(words)

FATES = {
    "refused": (refuse, None),
    "message": (lambda folder: refuse_badly(), None),
    "ZeroDivisionError": (lambda folder: 1 / 0, None),
    "MemoryError": (lambda folder: bytearray(2 << 30), None),
    "SIGSEGV": (die, None),
    "crash caught": (die, refuse),
    "hang": (lambda folder: time.sleep(60), None),
}

def refuse_badly():
    error = InputError()
    error.args = ("two\\nlines",)
    raise error

def make(folder):
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "file").write_bytes(b"whole")

fuzz.SECONDS, fuzz.KEPT, found = 1, Path("kept"), {}
for name, (fate, guard) in FATES.items():
    def read(folder):
        if (folder / "file").read_bytes() != b"whole":
            fate(folder)

    target = Target(name, make, read, guard=guard)
    tally = fuzz.fuzz(target, 3)
    found[name] = [tally.inputs, dict(tally.ends)]
found["kept"] = sorted(os.listdir("kept"))
files = [{"a.csv": b"x,y\\n1,2\\n", "b.json": b'{"a": 1}'}]
pairs = [[fuzz.damaged(target, files, 3, index) for _ in range(2)] for index in range(99)]
found["again"] = [one == other for one, other in pairs]
print(json.dumps(found))
"""


def test_the_harness_tells_how_a_reader_ends(tmp_path):
    (tmp_path / "harness.py").write_text(HARNESS)
    found = json.loads(run(tmp_path, "harness.py"))
    faults = {"message", "ZeroDivisionError", "MemoryError", "SIGSEGV", "hang"}
    assert all(found.pop("again"))  # an input depends on its index alone
    kept = found.pop("kept")
    assert len(kept) == sum(ends.get(name, 0) for _, ends in found.values() for name in faults)
    assert all(inputs == 3 and ends.keys() - {"read"} == {name} for name, (inputs, ends) in found.items())
    example = tmp_path / "kept" / next(name for name in kept if name.startswith("ZeroDivision"))
    assert "division by zero" in (example / "why.txt").read_text()
    assert (example / "input" / "file").read_bytes() != b"whole"
