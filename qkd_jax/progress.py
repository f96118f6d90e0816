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
    from rich.progress import track as bar

    yield from bar(items, description=title, total=count, console=Console(stderr=True), transient=True)
