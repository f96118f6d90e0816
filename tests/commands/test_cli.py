"""The command qkd-jax: its commands and presets, and how it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import qkd_jax
from qkd_jax.commands import cli, presets
from qkd_jax.commands.cli import COMMANDS, load_preset, main, preset_paths, run, run_command
from qkd_jax.errors import InputError
from tests.faults import refused

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _handlers():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_help_fits_a_screen_and_names_every_command(capsys):
    assert main(["--help"]) == main([]) == 0
    once, again = capsys.readouterr().out.split("usage: ")[1:]
    assert once == again and once.startswith("qkd-jax COMMAND")
    assert len(once.splitlines()) <= 24 and max(map(len, once.splitlines())) <= 100
    for name in COMMANDS:
        assert re.search(rf"^  {name}\b", once, flags=re.M)


def test_the_version_is_the_package_s_and_an_unknown_command_is_one_line(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"qkd_jax {qkd_jax.__version__}\n"
    assert main(["listen\n"]) == 2
    expected = "error: expected a command (train, check, eval, export, detect, presets), got 'listen?'\n"
    assert capsys.readouterr() == ("", expected)


def imports(monkeypatch, main, module=""):
    """Give every module that the command imports, if its name ends like that, this `main`."""
    found = SimpleNamespace(main=main)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: found if name.endswith(module) else 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_called_by_what_was_typed(name, monkeypatch):
    calls = []
    imports(monkeypatch, lambda *arguments: calls.append(arguments), f".{COMMANDS[name].module}")
    assert main([name, "x", "--y"]) == 0
    assert main([name], "python -m qkd_jax") == 0
    assert run(name, ["z"], f"{name}.py") == 0
    assert calls == [
        (["x", "--y"], f"qkd-jax {name}"),
        ([], f"python -m qkd_jax {name}"),
        (["z"], f"{name}.py"),
    ]


@pytest.mark.parametrize(
    ("typed", "name"),
    [(["detect.py"], "detect.py"), (["-m", "qkd_jax", "detect"], "python -m qkd_jax detect")],
)
def test_messages_name_the_command_as_typed(typed, name, tmp_path):
    done = subprocess.run([sys.executable, *typed], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name} MODEL FILE…" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_scripts_at_the_top_are_commands():
    for name in ("train", "eval", "export", "detect"):
        text = (ROOT / f"{name}.py").read_text()
        assert f'run("{name}", sys.argv[1:], "{name}.py")' in text and len(text.splitlines()) < 12


def lacking(name):
    def main(arguments, prog):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return main


def test_the_distribution_for_devices_says_what_it_lacks(monkeypatch, capsys):
    imports(monkeypatch, lacking("qkd_jax.training"))
    monkeypatch.setattr(cli, "_installed", lambda name: name == cli.DEVICE)
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: qkd-jax train needs the whole package (qkd_jax.training is missing): pip "
    )
    assert error.endswith("pip uninstall qkd_jax_detect && pip install qkd_jax\n")
    # A missing module of our own is no fault of the installation.
    monkeypatch.setattr(cli, "_installed", lambda name: name == cli.WHOLE)
    with pytest.raises(ModuleNotFoundError):
        main(["train"])
    imports(monkeypatch, lacking("jax"))
    monkeypatch.setattr(cli, "_installed", lambda name: False)
    assert main(["train"]) == 2
    expected = "error: qkd-jax train needs jax, which is not installed: pip install -e .\n"
    assert capsys.readouterr().err == expected


def test_two_distributions_at_once_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_installed", lambda name: True)
    assert main(["presets"]) == 2
    assert "share files, found both installed: pip uninstall qkd_jax_detect" in capsys.readouterr().err


def test_presets_are_found_by_name_and_files_by_path(tmp_path):
    names = ["audioset", "demo", "desed", "paper", "small", "tuned"]
    assert list(preset_paths()) == [load_preset(name).name for name in names] == names
    with refused(r"PRESET: expected audioset, demo, desed, paper, small, tuned, or a \.py .*'pape'"):
        load_preset("pape")
    with refused(r"or a \.py file, got 'gone\.py'"):
        load_preset("gone.py")
    path, imported = tmp_path / "own.py", "from qkd_jax.config import RunConfig\n"
    path.write_text(f"{imported}config = RunConfig(name='own')\n")
    assert load_preset(str(path)).name == "own"
    for text, message in (
        ("", "config: expected a RunConfig, found none"),
        (f"{imported}config = RunConfig(nam='x')\n", "nam: unknown field"),
    ):
        path.write_text(text)
        with refused(rf"own\.py: {message}"):
            load_preset(str(path))


AGAIN = "stopped; run the same command again to continue\n"


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (None, 0, ""),
        (InputError("a.wav: not there"), 2, "error: a.wav: not there\n"),
        (PermissionError(13, "Permission denied", "runs"), 2, "error: runs: Permission denied\n"),
        (KeyboardInterrupt("teacher: stopped"), 130, f"teacher: {AGAIN}"),
        (KeyboardInterrupt(), 130, AGAIN),
    ],
)
def test_a_command_ends_in_a_status_and_a_line(error, status, printed, capsys):
    def command(arguments):
        assert arguments == ["x"]
        if error is not None:
            raise error

    assert run_command(command, ["x"]) == status
    assert capsys.readouterr() == ("", printed)


def test_a_reader_may_close_the_pipe():
    command = f"{sys.executable} -m qkd_jax detect --help-all | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("usage: ") and done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_in_any_script_are_printed_in_any_encoding(encoding):
    name = "é ± 犬 \udcff"
    code = f"""if True:
        import sys
        from qkd_jax.commands.cli import main, run_command
        from qkd_jax.errors import InputError
        def command(arguments):
            print(*arguments)
            raise InputError(arguments[0])
        main(["--help"])
        sys.exit(run_command(command, [{name!a}]))"""
    streams = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=os.environ | streams)
    assert done.returncode == 2, done.stderr
    *_, printed = done.stdout.decode(encoding).splitlines()
    assert printed == name.encode(encoding, "backslashreplace").decode(encoding)
    expected = f"error: {name[:-1]}?".encode(encoding, "backslashreplace")
    assert done.stderr.splitlines() == [expected]


def test_a_fault_in_the_library_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda arguments: 1 / 0, [])


def test_each_preset_has_a_line(capsys):
    presets.main([], "qkd-jax presets")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(preset_paths())
    for line, path in zip(lines, preset_paths().values(), strict=True):
        assert path.read_text().startswith(f'"""{line.split(maxsplit=1)[1]}') and len(line) <= 125
    presets.main(["--help"], "qkd-jax presets")
    assert capsys.readouterr().out.startswith("usage: qkd-jax presets\n")
    with refused("qkd-jax presets: expected no arguments, got demo"):
        presets.main(["demo"], "qkd-jax presets")
