"""What the commands share: presets, the command line, and how a command ends.

A preset is a Python file in `configs/` that binds the name `config`; the command line
overrides single fields of it (`--train.seed 1`).  It is run: from others take what you would run.
"""

import contextlib
import io
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from qkd_jax.config import RunConfig
from qkd_jax.errors import InputError, explain, printable

T = TypeVar("T")


def load_preset(name: str, folder: Path) -> Any:
    """The preset `folder`/`name`.py; raises InputError if there is none or it is not one."""
    path = folder / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.py")))
        raise InputError(f"no preset {name!r}; there are: {known}")
    try:
        config = runpy.run_path(str(path)).get("config")
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from None
    if not isinstance(config, RunConfig | RunConfig):
        raise InputError(
            f"{path}: expected it to bind `config` to a RunConfig or RunConfig, found {type(config).__name__}"
        )
    return config


def override(default: T, arguments: list[str], **keywords: Any) -> T:
    """`default` with the fields that `arguments` (`--section.field value`) set.

    Prints the help and exits for `--help`; raises InputError, one line, for a wrong argument.
    """
    import tyro

    printed = io.StringIO()
    asked_for_help = {"-h", "--help"} & set(arguments)
    width = contextlib.nullcontext() if asked_for_help else _wide_terminal()
    try:
        with contextlib.redirect_stderr(printed), width:
            # Of what may be one kind or another, a preset has said which.
            fixed = (tyro.conf.AvoidSubcommands,)
            return tyro.cli(type(default), default=default, args=arguments, config=fixed, **keywords)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = (line.strip("│╭╮╰╯─ ") for line in printed.getvalue().splitlines()[1:])
        words = (line for line in lines if line and not line.startswith("For full helptext"))
        raise InputError(f"{' '.join(words)} (--help lists every field)") from None
    except ValidationError as error:
        raise InputError(explain(error)) from None


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Tyro draws its errors in a box; without line breaks they can be taken out of it."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "400"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)


def run_command(main: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Run a command and return its status: 0; 2 for what a person can mend, 130 for being stopped.

    Either is said in plain words on stderr.
    """
    # A scheduler's SIGTERM is a Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(arguments)
    except KeyboardInterrupt as stop:
        print(f"{str(stop) or 'stopped'}; the same command goes on from there", file=sys.stderr)
        return 130
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {printable(said)}", file=sys.stderr)
        return 2
    return 0
