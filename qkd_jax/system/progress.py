"""Progress bars on a terminal; nothing elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


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
