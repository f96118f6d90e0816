"""What every change must pass: `nox` runs all of it, `nox -s lint` one part.

`lint`, `types` and `tests` run in the environment that nox runs in, which `install` prepares; `wheel` and
`device` build the two distributions and install each in an empty environment.
"""

import atexit
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nox

ROOT = Path(__file__).parent
[INSTALL, TEST] = re.findall(
    r"^(pip install -e '\.\[test\]') && (pytest)$", (ROOT / "README.md").read_text(), re.M
)[0]

nox.options.default_venv_backend = "none"
nox.options.sessions = ["install", "lint", "types", "tests", "wheel", "device"]

BUDGET = {"tests": 8, "wheels and the demo": 2, "rest": 4}
"""Minutes per part, on two cores."""
DEMO = """
--data.clip-seconds 0.4 --data.counts 24 16 20 --features.n-mels 8 --recipe.batch-size 8 --recipe.epochs 1
--models.teacher.network.blocks 1 1 --models.teacher.network.growth 4 --models.teacher.network.stem 4
--models.teacher.epochs 1
"""
"""The demo's smallest form."""
_DETECTOR = """
import sys, pathlib, numpy, soundfile
from tests.detectors import PLAIN, random_detector
from qkd_jax.detector.file import save
folder = pathlib.Path(sys.argv[1])
save(random_detector(PLAIN), folder / "detector.safetensors")
noise = numpy.random.default_rng(0).uniform(-1, 1, 80_000)
soundfile.write(folder / "noise.wav", noise * numpy.linspace(0, 1, 80_000), 16_000)
"""
_seconds = dict.fromkeys(BUDGET, 0.0)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Count the time within the block for a part of the budget."""
    begun = time.monotonic()
    try:
        yield
    finally:
        _seconds[name] += time.monotonic() - begun


@atexit.register
def print_budget() -> None:
    """Print the time that each part took, beside its budget."""
    for name, minutes in BUDGET.items():
        if _seconds[name]:
            over = "  OVER BUDGET" if _seconds[name] > 60 * minutes else ""
            print(f"{name:20} {_seconds[name]:5.0f} s of {60 * minutes} s{over}", flush=True)


@nox.session
def install(session: nox.Session) -> None:
    """Install the package, as the README does, and in CI what its slowest tests need too."""
    with part("rest"):
        session.run("bash", "-c", INSTALL, external=True)
        if os.environ.get("CI"):
            session.run("pip", "install", "-e", ".[sed]", external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style: ruff."""
    with part("rest"):
        session.run("ruff", "check", ".", external=True)
        session.run("ruff", "format", "--check", ".", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Types: mypy."""
    with part("rest"):
        session.run("mypy", external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, by the README's command; arguments after -- go to pytest."""
    with part("tests"):
        session.run(TEST, *(session.posargs or ["--durations=20"]), external=True)


@nox.session(venv_backend="venv")
def wheel(session: nox.Session) -> None:
    """The whole package, outside the clone: its wheel from its sdist, and the demo's smallest form."""
    with part("wheels and the demo"), tempfile.TemporaryDirectory() as folder:
        session.install("build", "setuptools>=77")
        session.run("python", "-m", "build", "--no-isolation", "--outdir", folder, str(ROOT), silent=True)
        [built], [_] = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
        session.install(str(built))
        with session.chdir(folder):
            session.run("qkd-jax", "--version")
            session.run("qkd-jax", "presets")
            session.run("qkd-jax", "train", "--help", silent=True)
            session.run("qkd-jax", "check", "demo", *DEMO.split())
            session.run("qkd-jax", "train", "demo", *DEMO.split())
            session.run("qkd-jax", "export", "runs/demo/distilled-8")
            session.run("qkd-jax", "detect", "runs/demo/distilled-8.safetensors", *_some_recordings(folder))
            session.run("python", "-m", "qkd_jax", "eval", "runs/demo/distilled-8", "--split", "valid")
            shutil.rmtree("runs")


def _some_recordings(folder: str) -> list[str]:
    recordings = sorted(Path(folder, "runs/demo").rglob("test-*.wav"))
    assert recordings
    return [str(path) for path in recordings[:3]]


@nox.session(venv_backend="venv")
def device(session: nox.Session) -> None:
    """The small distribution: `detect` where there is no JAX, and a line for what it lacks."""
    with part("wheels and the demo"), tempfile.TemporaryDirectory() as folder:
        session.run(sys.executable, "-c", _DETECTOR, folder, external=True)
        # Setuptools would put into the wheel what an earlier build has left.
        shutil.rmtree(ROOT / "packaging" / "detect" / "build", ignore_errors=True)
        session.run("pip", "wheel", "--quiet", "--no-deps", "-w", folder, str(ROOT / "packaging" / "detect"))
        [built] = Path(folder).glob("*.whl")
        session.install(str(built))
        with session.chdir(folder):
            listed = session.run("pip", "list", "--format=freeze", silent=True) or ""
            found = {line.split("==")[0] for line in listed.splitlines()}
            assert not found & {"jax", "numba", "llvmlite", "scipy", "librosa"}, found
            session.run("qkd-jax", "--version")
            session.run("qkd-jax", "detect", "detector.safetensors", "noise.wav")
            if shutil.which("cc"):
                session.run("qkd-jax", "detect", "detector.safetensors", "noise.wav", "--runtime", "c")
            session.run("qkd-jax", "train", "demo", success_codes=[2])
