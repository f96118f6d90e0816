"""Stopping on Ctrl-C or a scheduler's SIGTERM where it does no harm."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_received: list[int] = []  # module state, because signals belong to the process


@contextlib.contextmanager
def stop_requests() -> Iterator[None]:
    """Within the block, only note the first SIGINT or SIGTERM, for `asked_to_stop` and `stop_if_asked`.

    A KeyboardInterrupt at an arbitrary place may be swallowed by a library's callback, or crash it; the
    second signal raises one nevertheless.  A signal that the process ignores stays ignored, as a shell's
    background jobs ignore SIGINT.  Nothing changes outside the main thread, the only one that receives
    signals, or in a nested block.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread() or _note in handlers.values():
        yield
        return
    handlers = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    _received.clear()
    for number in handlers:
        signal.signal(number, _note)
    try:
        yield
    finally:
        _received.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def asked_to_stop() -> bool:
    """Whether a signal has arrived since the outermost block of `stop_requests` began."""
    return bool(_received)


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal has arrived; call it where no work is half-done."""
    if _received:
        raise KeyboardInterrupt


def _note(number: int, frame: object) -> None:
    if _received:
        raise KeyboardInterrupt
    _received.append(number)
    with contextlib.suppress(OSError):  # print isn't reentrant
        os.write(2, b"Saving and stopping; press Ctrl-C again to quit immediately.\n")
