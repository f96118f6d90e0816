"""The command `qkd-jax`: subcommands, presets, exit codes.

A preset is a Python file that binds `config` to a RunConfig.  It is run: only use presets that you trust.
"""

import ast
import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import qkd_jax
from qkd_jax.errors import InputError, explain, printable

if TYPE_CHECKING:
    from qkd_jax.config import RunConfig


class Command(NamedTuple):
    """A command: the module with its `main`; its arguments and its summary in the help."""

    module: str
    arguments: str
    does: str


COMMANDS = {
    "train": Command("train", "[PRESET]", "train the models of a preset (default: demo) and score them"),
    "check": Command("check", "[PRESET]", "show what train would read, and what is wrong with it, as a page"),
    "eval": Command("evaluate", "RUN[/MODEL]|FILE", "score a run, one of its models, or an exported file"),
    "export": Command("export", "RUN/MODEL", "export a model for a device"),
    "detect": Command(
        "detect", "MODEL FILE…", "detect events in recordings, standard input or the microphone"
    ),
    "presets": Command("presets", "", "list the presets"),
}
WHOLE, DEVICE = "qkd_jax", "qkd_jax_detect"
"""The two distributions that hold the package qkd_jax."""


def main(arguments: Sequence[str] | None = None, prog: str = "qkd-jax") -> int:
    """Run the command `arguments[0]` with the other arguments; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, *rest = arguments or ["--help"]
    if command in COMMANDS:
        return run(command, rest, f"{prog} {command}")

    def other(arguments: list[str]) -> None:
        if command in ("-h", "--help"):
            print(_help(prog))
        elif command == "--version":
            print(f"qkd_jax {qkd_jax.__version__}")
        else:
            raise InputError(f"expected a command ({', '.join(COMMANDS)}), got {printable(command)!r}")

    return run_command(other, rest)


def run(command: str, arguments: Sequence[str], prog: str) -> int:
    """Run one of `COMMANDS`, shown as `prog` in messages; return its exit status."""

    def imported(arguments: list[str]) -> None:
        _refuse_two_distributions()
        try:
            importlib.import_module(f"qkd_jax.commands.{COMMANDS[command].module}").main(arguments, prog)
        except ModuleNotFoundError as error:
            if _installed(DEVICE):
                raise InputError(
                    f"{prog} needs the whole package ({error.name} is missing): "
                    f"pip uninstall {DEVICE} && pip install {WHOLE}"
                ) from None
            if str(error.name).startswith("qkd_jax"):
                raise
            clone = (Path(qkd_jax.__file__).parents[1] / "pyproject.toml").is_file()
            remedy = "pip install -e ." if clone else f"pip install {WHOLE}"
            raise InputError(f"{prog} needs {error.name}, which is not installed: {remedy}") from None

    return run_command(imported, arguments, resumable=command in ("train", "detect"))


def run_command(
    main: Callable[[list[str]], None], arguments: Sequence[str], *, resumable: bool = True
) -> int:
    """Call `main(arguments)` and return the exit status: 0, 2 for invalid input, 130 if interrupted.

    Invalid input and interruptions are reported in one line on stderr; other exceptions pass.  Standard
    streams that are closed work like /dev/null.
    """
    _open_closed_streams()
    _print_in_any_encoding()
    # Schedulers and service managers send SIGTERM where a person presses Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            main(list(arguments))
        finally:
            sys.stdout.flush()  # now, where a full disk can still be reported
    except KeyboardInterrupt as stop:
        advice = "; run the same command again to continue" if resumable else ""
        _report(f"{str(stop) or ('stopped' if resumable else 'interrupted')}{advice}")
        return 130
    except InputError as error:
        _report(f"error: {error}")
        return 2
    except BrokenPipeError:
        discard(sys.stdout)  # the reader, such as `head`, has enough
        return 1
    except OSError as error:
        where = error.filename
        if where is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = "standard output"
            discard(sys.stdout)
        _report(f"error: {printable(f'{where}: {error.strerror}' if where else str(error))}")
        return 2
    return 0


def _print_in_any_encoding() -> None:
    """Let streams print escapes for characters that their encoding lacks, such as those of event names."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Send the rest of what `stream` gets to /dev/null, else Python would fail to flush it at its exit."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: not a file, as in a notebook
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def _open_closed_streams() -> None:
    """Open /dev/null for stdout and stderr where they are closed.

    Otherwise the next file that is opened would become the process's standard stream, and print to None would
    go to stdout.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, since it stays open
            setattr(sys, name, null)


def preset_paths() -> dict[str, Path]:
    """The files of the presets that come with the package, by name."""
    package = Path(qkd_jax.__file__).parent
    # A wheel holds the folder configs/ of the clone as qkd_jax/presets/.
    folders = (package / "presets", package.parent / "configs")
    folder = next(folder for folder in folders if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def docstring(path: Path | str) -> str:
    """The docstring of the module in the file `path`, which `python -OO` doesn't keep in memory."""
    return ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8"))) or ""


def load_preset(name: str) -> "RunConfig":
    """The preset `name`, or the one in the file `name` if that ends in .py.

    Raises InputError if there is none, or if it does not bind `config` to a RunConfig.
    """
    import runpy

    from pydantic import ValidationError

    from qkd_jax.config import RunConfig

    path = Path(name) if name.endswith(".py") else preset_paths().get(name)
    if path is None or not path.is_file():
        raise InputError(f"PRESET: expected {', '.join(preset_paths())}, or a .py file, got {name!r}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from None
    if not isinstance(config, RunConfig):
        found = "none" if config is None else type(config).__name__
        raise InputError(f"{path}: config: expected a RunConfig, found {found}")
    return config


def _help(prog: str) -> str:
    usages = {name: f"{name} {command.arguments}".strip() for name, command in COMMANDS.items()}
    rows = [f"  {usages[name]:22}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {prog} COMMAND …",
            "",
            "Train, export and run small acoustic event detectors.",
            "",
            *rows,
            "",
            f"  {prog} COMMAND --help  show help for a command",
            f"  {prog} --version       show the version",
        ]
    )


def _installed(distribution: str) -> bool:
    import importlib.metadata

    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _refuse_two_distributions() -> None:
    """Raise InputError if both distributions are installed: each would overwrite files of the other."""
    if _installed(DEVICE) and _installed(WHOLE):
        raise InputError(
            f"expected {WHOLE} or {DEVICE}, which share files, found both installed: pip uninstall {DEVICE} "
            f"&& pip install --force-reinstall --no-deps {WHOLE}"
        )
