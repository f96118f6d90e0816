"""Run an untrusted model once in a subprocess, so that a crash or hang can't take down this process.

Run as a program, this file is that subprocess; its arguments are those of `run_once`, after a module's name.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from qkd_jax.errors import InputError

_SECONDS, _BYTES = 120, 16 << 30
"""Limits of the subprocess: run time and memory."""
_REFUSED = 3
"""Exit status after an InputError, whose message is the last line of stdout."""
_succeeded: set[tuple[object, ...]] = set()


def try_apart(module: str, path: Path, *more: str, runtime: str) -> None:
    """Call `run_once(path, *more)` of `module` in a subprocess, limited to 2 minutes and 16 GiB.

    A call that has succeeded is not made again while the file at `path` stays the same.  Raises InputError if
    the call does, or if the library (named `runtime` in the message) crashes or takes too long;
    KeyboardInterrupt if a signal stops the subprocess.
    """
    file = path.stat() if path.exists() else None
    call = (module, path.absolute(), file and (file.st_mtime_ns, file.st_size), more)
    if call in _succeeded:
        return
    # Not a fork: it would copy the locks of JAX's threads without the threads that release them.
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
    if done.returncode in (-signal.SIGINT, -signal.SIGTERM):  # a terminal signals the whole process group
        raise KeyboardInterrupt
    if done.returncode == _REFUSED:
        raise InputError(done.stdout.decode(errors="replace").splitlines()[-1])
    if done.returncode:
        names = {-number: number.name for number in signal.Signals}
        crash = names.get(done.returncode, f"status {done.returncode}")
        raise InputError(f"{path}: made {runtime} crash ({crash}); expected a model that it can run")
    _succeeded.add(call)


def _main(module: str, path: str, *more: str) -> None:
    with contextlib.suppress(ImportError, ValueError):  # not every system has this limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    try:
        importlib.import_module(module).run_once(Path(path), *more)
    except InputError as error:
        # On a line of its own, after whatever the library has printed.
        sys.stdout.flush()
        sys.stdout.buffer.write(f"\n{error}".encode())
        sys.exit(_REFUSED)


if __name__ == "__main__":
    _main(*sys.argv[1:])
