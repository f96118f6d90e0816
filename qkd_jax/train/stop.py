"""Being asked to stop, by Ctrl-C or by a scheduler, between two steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM came since the block began.

    The second one raises KeyboardInterrupt at once.  Only the main thread is sent signals;
    elsewhere the answer is always no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        os.write(2, b"stopping after this step; once more to stop at once\n")  # print may be midway itself

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
