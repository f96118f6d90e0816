"""What a file makes a library do, tried in a process of its own, which alone ends if that crashes or hangs.

As a program, this file is that process: MODULE PATH ….
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from qkd_jax.errors import InputError

_SECONDS, _MEMORY = 120, 16 << 30
"""That a trial may take, and bytes."""
_REFUSED = 3
"""The status of the process whose last line is an InputError's."""


def try_apart(module: str, path: Path, *more: str, runtime: str) -> None:
    """Call `run_once(path, *more)` of `module` in a process of its own.

    Raises InputError if it does, and if the `runtime`, whose name that is, crashes or takes too long;
    KeyboardInterrupt if a signal to stop comes meanwhile.
    """
    # Not a fork, which would have the locks of JAX's threads but not the threads.
    command = [sys.executable, "-P", "-m", "qkd_jax.system.isolation", module, str(path), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{path}: took {runtime} more than {_SECONDS} s; expected a model that it can run"
        ) from None
    if done.returncode in (-signal.SIGINT, -signal.SIGTERM):  # meant for us all
        raise KeyboardInterrupt
    if done.returncode == _REFUSED:
        raise InputError(done.stdout.decode(errors="replace").splitlines()[-1])
    if done.returncode:
        names = {-number: number.name for number in signal.Signals}
        crash = names.get(done.returncode, f"status {done.returncode}")
        raise InputError(f"{path}: made {runtime} crash ({crash}); expected a model that it can run")


def _main(module: str, path: str, *more: str) -> None:
    with contextlib.suppress(ImportError, ValueError):  # there is no such limit everywhere
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        importlib.import_module(module).run_once(Path(path), *more)
    except InputError as error:
        # A runtime may have printed too.
        sys.stdout.buffer.write(f"\n{error}".encode())
        sys.exit(_REFUSED)


if __name__ == "__main__":
    _main(*sys.argv[1:])
