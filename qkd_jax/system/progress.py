"""Progress bars on a terminal; nothing elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def duration(seconds: float) -> str:
    """A length of time in words.

    >>> duration(20.0), duration(150.0), duration(9000.0)
    ('a minute', '3 minutes', '2.5 hours')
    """
    minutes = max(round(seconds / 60 + 0.49), 1)
    if minutes == 1:
        return "a minute"
    return f"{minutes} minutes" if minutes < 90 else f"{seconds / 3600:.1f} hours"


def track(items: Iterable[T], count: int, title: str) -> Iterator[T]:
    """Yield `items`, with a progress bar of `count` steps on stderr if that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    bar = Progress(
        *Progress.get_default_columns(),
        console=Console(stderr=True),
        transient=True,
        # Otherwise print() would write to stderr, not to stdout's file.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    with bar:
        yield from bar.track(items, total=count, description=escape(title))
