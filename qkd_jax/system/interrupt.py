"""Being asked to stop, by Ctrl-C or by a scheduler, where it does no harm."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_came: list[int] = []  # signals come to a process, not to a function


@contextlib.contextmanager
def stop_requests() -> Iterator[None]:
    """Within the block a first SIGINT or SIGTERM is only noted, for `asked_to_stop` and `stop_if_asked`.

    A KeyboardInterrupt anywhere may be swallowed by a library's callback, or end in a crash; the
    second signal raises one all the same.  Only the main thread is sent signals: elsewhere, and
    in a block within a block, nothing changes.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread() or _note in handlers.values():
        yield
        return
    _came.clear()
    for number in handlers:
        signal.signal(number, _note)
    try:
        yield
    finally:
        _came.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def asked_to_stop() -> bool:
    """Whether a signal came since the outermost block of `stop_requests` began."""
    return bool(_came)


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal came: to be called where nothing is half-done."""
    if _came:
        raise KeyboardInterrupt


def _note(number: int, frame: object) -> None:
    if _came:
        raise KeyboardInterrupt
    _came.append(number)
    os.write(2, b"stopping as soon as all is saved; once more to stop at once\n")  # print may be midway
