"""Figures as a page shows them."""

from collections.abc import Iterable, Sequence

import numpy as np

DASH = "–"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """The mean of several seeds' values ± half their range."""
    half = f" ± {np.ptp(values) / 2:.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{half}"


def signed(value: float) -> str:
    """With a plus or a minus, one digit after the point."""
    return f"{value:+.1f}".replace("-", "−") if value else "0"
