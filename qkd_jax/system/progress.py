"""What a person sees of long work: a bar on a terminal, nothing elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], count: int, title: str) -> Iterator[T]:
    """`items`, with a progress bar of `count` steps on stderr while they are consumed."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    # What is printed stays on stdout, which may be a file.
    bar = Progress(
        *Progress.get_default_columns(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        yield from bar.track(items, total=count, description=escape(title))
