"""Commands as processes, where people run them: without asserts, devices, streams, or recordings."""

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import jax
import pytest
import soundfile

from qkd_jax.detector.file import save
from qkd_jax.system.devices import computing
from tests.detectors import PLAIN, random_detector
from tests.faults import refused_in_one_line
from tests.recordings import noise

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
HEADER = ["file", "onset", "offset", "event", "peak"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a detector and a recording."""
    folder = tmp_path_factory.mktemp("place")
    save(random_detector(PLAIN), folder / "m.safetensors")
    soundfile.write(folder / "a.wav", noise(16_000), 16_000)
    return folder


def qkd(place, *arguments, python=(), shell="", **environment):
    """`qkd-jax` with `arguments`, and `shell` behind them, such as redirections."""
    command = [sys.executable, *python, "-m", "qkd_jax", *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", *command],
        capture_output=True,
        text=True,
        cwd=place,
        env=ENVIRONMENT | environment,
        timeout=100,
    )


def assert_line(done, status, pattern):
    """It ended with `status` and one line on stderr."""
    assert done.returncode == status, done.stderr
    assert re.fullmatch(pattern, done.stderr.rstrip("\n")), done.stderr


# Interpreters.


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["presets"], ["presets", "--help"]])
def test_docstrings_are_shown_without_docstrings_in_memory(place, arguments):
    plain, bare = (qkd(place, *arguments, python=python) for python in ((), ("-OO",)))
    assert bare.returncode == 0 and bare.stdout == plain.stdout and len(bare.stdout) > 80


def test_help_names_what_settings_are_for_without_docstrings_in_memory(place):
    done = qkd(place, "detect", "m.safetensors", "--help-all", python=("-OO",))
    assert "events: Post-processing of a detector's posteriors" in done.stdout
    assert "Median filter length in seconds; 0 disables it." in done.stdout


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_events_are_found_and_mistakes_refused_without_asserts(place, option):
    plain, bare = (
        qkd(place, "detect", "m.safetensors", "a.wav", python=python) for python in ((), (option,))
    )
    assert bare.returncode == 0 and bare.stdout == plain.stdout
    assert_line(qkd(place, "detect", "m.safetensors", python=(option,)), 2, "error: .*at least one file.*")


@pytest.mark.slow
def test_a_run_is_scored_and_exported_without_asserts(finished):
    plain, bare = (qkd(finished, "eval", finished / "plain", python=python) for python in ((), ("-OO",)))
    assert bare.returncode == 0 and bare.stdout == plain.stdout


# Devices.


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'")])
def test_devices_that_are_missing_are_one_line(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    expected = "JAX_PLATFORMS=cuda: expected devices that JAX can use, found none"
    remedy = r"set JAX_PLATFORMS=cpu, or for NVIDIA GPUs: pip install 'qkd_jax\[cuda\]'"
    with refused_in_one_line(rf"{expected} \(.*\); {remedy}"), computing():
        pass


@pytest.mark.parametrize(
    ("platform", "command"),
    [
        pytest.param("nonsense", "eval", marks=pytest.mark.slow),
        pytest.param("tpu", "export", marks=pytest.mark.slow),
        ("cuda", "train"),
        ("nonsense", "detect"),
    ],
)
def test_commands_name_devices_that_are_missing(place, request, platform, command):
    if platform == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("this machine has CUDA")
    arguments = {"train": ["demo", "--runs", place / "runs"], "detect": ["m.safetensors", "a.wav"]}
    if command in ("eval", "export"):
        run = request.getfixturevalue("finished")
        arguments = {"eval": [run / "plain"], "export": [run / "four"]}
    done = qkd(place, command, *arguments[command], JAX_PLATFORMS=platform)
    if command == "detect":  # which needs no JAX
        assert done.returncode == 0
    else:
        assert_line(done, 2, f"error: JAX_PLATFORMS={platform}: expected devices .*; set JAX_PLATFORMS=cpu.*")
        assert not (place / "runs").exists()


# Streams.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["detect", "m.safetensors", "a.wav"], ["--help"], ["presets"]])
def test_a_full_disk_behind_stdout_is_one_line(place, arguments):
    done = qkd(place, *arguments, shell="> /dev/full")
    assert_line(done, 2, "error: standard output: No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("shell", ["2> /dev/full", "2>&-", ">&- 2>&- <&-"])
def test_the_status_stays_where_stderr_takes_no_message(place, shell):
    done = qkd(place, "presets", "x", shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_like_dev_null(place, shell):
    done = qkd(
        place, "detect", "m.safetensors", "a.wav", "--state", "s", shell=shell
    )  # opens no file as stdout
    assert done.returncode == 2 and ("--state: expected" in done.stderr) == ("2>" not in shell)
    done = qkd(place, "detect", "m.safetensors", "a.wav", shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:5] == ([] if shell.startswith(">") else HEADER)


@pytest.mark.slow
def test_tables_and_bars_need_no_stdout(finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    done = qkd(tmp_path, "eval", tmp_path / finished.name / "plain", shell=">&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("columns", "environment"),
    [(20, {"TERM": "dumb"}), (1, {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "1"})],
)
def test_terminals_of_any_width_and_kind(place, columns, environment):
    table = "print_table({'split': 'test', 'clips': 3, 'models': {'m': {'bytes': 1, 'metrics': metrics}}})"
    code = [
        "from qkd_jax.evaluation.table import print_table",
        "from qkd_jax.system.progress import track",
        "figures = {'auc': 50.0, 'eer': 50.0}",
        "metrics = {'average': figures, 'events': dict.fromkeys(('bell', 'knock'), figures)}",
        f"list(track(range(3), 3, 'bar')); {table}",
        "from qkd_jax.commands.cli import main; raise SystemExit(main(['train', '--help']))",
    ]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    command = [sys.executable, "-c", "\n".join(code)]
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=place, env=ENVIRONMENT | environment)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO at the end
        while piece := os.read(ours, 1 << 16):
            seen += piece
    os.close(ours)
    assert child.wait() == 0 and b"Traceback" not in seen and b"usage: " in seen


# Files.


def test_files_that_are_no_recordings_are_named_and_do_not_end_the_others(place):
    os.mkfifo(place / "pipe.wav")
    (place / "folder.wav").mkdir(exist_ok=True)
    odd = {
        "gone.wav": "found none",
        "folder.wav": "found a folder",
        "pipe.wav": "found a pipe, socket or device",
        "/dev/zero": "found a pipe, socket or device",
        "a" * 300: "found one that can't be read: File name too long",
    }
    done = qkd(place, "detect", "m.safetensors", *odd, "a.wav", "--threshold", "0.000001")
    assert done.returncode == 2 and "a.wav" in done.stdout.splitlines()[1]
    lines = [f"{name}: expected a recording, {found}" for name, found in odd.items()]
    assert done.stderr.removeprefix("error: ").splitlines() == lines
