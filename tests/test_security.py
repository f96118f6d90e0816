"""No file is run, no file is unpickled, nothing is asked of a network, nothing is written elsewhere."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = [*ROOT.glob("*.py"), *(ROOT / "qkd_jax").rglob("*.py")]
UNPICKLE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
NETWORK = {"socket", "socketserver", "ssl", "urllib", "http", "ftplib", "smtplib", "asyncio", "xmlrpc"}
NETWORK |= {"requests", "httpx", "aiohttp", "urllib3", "huggingface_hub", "webbrowser"}
RUN = {"eval", "exec", "compile", "__import__"}
SHELL = {"system", "popen", "getoutput", "getstatusoutput"}


def imported(path):
    """The libraries that a file imports, or may import by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def calls(path):
    """Each call in a file: the last part of what is called, whether that is an attribute, and the call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            attribute = isinstance(node.func, ast.Attribute)
            name = node.func.attr if attribute else getattr(node.func, "id", "")
            yield name, attribute, node


def keywords(call):
    return {keyword.arg: getattr(keyword.value, "value", "something") for keyword in call.keywords}


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_a_file_is_run_and_no_network_is_used(path):
    libraries = set(imported(path))
    assert not libraries & (UNPICKLE | NETWORK)
    # Presets are Python, and the only files that are run.
    assert "runpy" not in libraries or path == ROOT / "qkd_jax" / "commands" / "cli.py"
    for name, attribute, call in calls(path):
        assert attribute or name not in RUN, f"line {call.lineno}: {name}"
        assert not (attribute and name in SHELL), f"line {call.lineno}: {name}"
        assert keywords(call).get("shell", False) is False, f"line {call.lineno}: {name}"
        assert keywords(call).get("allow_pickle", False) is False, f"line {call.lineno}: {name}"


WATCH = """
import os, runpy, sys

allowed, sys.argv = sys.argv[1], sys.argv[2:]

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
        complain(event, arguments[1:])
    elif event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        check(event, arguments[0])
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"):
        check(event, arguments[0])
    elif event in ("os.rename", "os.link", "os.symlink"):
        check(event, arguments[1])

def check(event, path):
    path = os.path.realpath(path)
    if not (path + os.sep).startswith((allowed + os.sep, "/dev/", "/proc/")):
        complain(event, path)

def complain(*words):
    os.write(2, f"WATCH: {words}\\n".encode())

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(sys.argv[0]))
sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TINY = """
--data.clip-seconds 0.4 --data.counts 24 16 20 --features.n-mels 8 --recipe.batch-size 8 --recipe.epochs 1
--models.teacher.network.blocks 1 1 --models.teacher.network.growth 4 --models.teacher.network.stem 4
--models.teacher.epochs 1
"""


def watched(folder, *command):
    """What Python complains of as it runs a command that may write in `folder` alone, and what that says.

    Of what libraries do past Python, and processes that they start, it sees nothing.
    """
    home, temporary = folder / "home", folder / "tmp"
    for path in (home, temporary):
        path.mkdir(exist_ok=True)
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    env = kept | {"HOME": str(home), "TMPDIR": str(temporary), "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", WATCH, str(folder.resolve()), *map(str, command)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    complaints = [line for line in done.stderr.splitlines() if line.startswith("WATCH: ")]
    return complaints, done


def test_the_watch_sees_what_it_shall_and_there_is_something_to_look_at(tmp_path):
    expected = {"train.py", "detect.py", "cli.py", "logits.py", "waveform_model.py"}
    assert expected <= {path.name for path in OURS}
    script = tmp_path / "script.py"
    elsewhere = tmp_path.parent / "elsewhere"
    script.write_text(
        f"import os, socket\nopen('here', 'w').close()\nopen({str(elsewhere)!r}, 'w').close()\n"
        "os.rename('here', '../there')\nos.remove('../there')\n"
        "with socket.socket() as s:\n    s.settimeout(0.01)\n    s.connect_ex(('127.0.0.1', 9))\n"
    )
    complaints, done = watched(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert [line.split("'")[1] for line in complaints] == ["open", "os.rename", "os.remove", "socket.connect"]
    elsewhere.unlink()


@pytest.mark.slow
def test_a_run_writes_in_its_folders_and_asks_no_network(tmp_path):
    run = tmp_path / "runs" / "demo"
    exported = run / "distilled-8.safetensors"
    recording = run / "data" / "audio" / "test-00000.wav"
    for command, made in (
        (("train.py", "demo", *TINY.split()), run / "report.html"),
        (("eval.py", run, "--split", "valid"), run / "results-valid.json"),
        (("export.py", run / "distilled-8"), exported),
        (("export.py", run / "distilled-8", "--format", "onnx"), exported.with_suffix(".onnx")),
        (("eval.py", exported.with_suffix(".onnx")), exported),
        (("detect.py", exported, recording), exported),
    ):
        complaints, done = watched(tmp_path, ROOT / command[0], *command[1:])
        assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
        assert complaints == [], command
        assert made.is_file()
