"""The page of `python -m benchmarks.speed`, from the rows that it kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.turns import Row
from benchmarks.text import DASH, markdown

HEAD = """# Speed, beside what people use today

Made by `python -m benchmarks.speed`: edits would be lost. Each pair is checked to compute the same thing:
"off" is the largest difference, as a share of the largest value. Then both have turns: "times as fast" is the
median over the rounds of the peer's time by ours, and its quartiles. Times are medians, on the clock."""
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
COLUMNS = ("what", "qkd_jax", "time", "peer", "its time", "times as fast", "goal", "off", "")


def page(folder: Path, questions: Sequence[str]) -> str:
    """What `folder` keeps of each device, in the order of `questions`, as Markdown.

    Remarks that somebody wrote on an answer, NAME.md beside NAME.json, follow it.
    """
    parts = [HEAD]
    for name in questions:
        found = [path for path in sorted(folder.glob(f"*/{name}.json"))]
        answers = {path.parent.name: json.loads(path.read_text()) for path in found}
        if not answers:
            parts += [f"## {name}", "Not measured yet."]
            continue
        first = next(iter(answers.values()))
        parts += [f"## {first['question']}", first["about"]]
        for device, answer in answers.items():
            parts += [
                f"{answer['device']}: {answer['machine']}; {answer['versions']}.",
                markdown(COLUMNS, [row(Row(**each)) for each in answer["rows"]]),
            ]
            if (remarks := folder / device / f"{name}.md").is_file():
                parts.append(remarks.read_text().rstrip())
        if "gpu" not in answers:
            parts.append("On a GPU: unmeasured.")
    return "\n\n".join(parts) + "\n"


def row(each: Row) -> list[str]:
    """A row's cells."""
    ratio, goal = DASH, DASH
    if each.peer_seconds:
        middle, low, high = (_digits(value) for value in each.times_as_fast)
        ratio = f"{middle} ({low} to {high})"
    if each.at_least is not None:
        goal = f"≥ {_digits(each.at_least)}"
    elif each.at_most is not None:
        goal = f"≤ {time_text(each.at_most)}"
    if each.met is not None:
        goal += ": met" if each.met else ": missed"
    return [
        each.what,
        each.ours,
        time_text(np.median(each.seconds)),
        each.peer or DASH,
        time_text(np.median(each.peer_seconds)) if each.peer_seconds else DASH,
        ratio,
        goal,
        DASH if each.off is None else f"{each.off:.1g}",
        each.note,
    ]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def time_text(seconds: Any) -> str:
    """Seconds in a unit that suits them."""
    unit, size = next((each for each in UNITS if seconds >= each[1]), UNITS[-1])
    return f"{_digits(seconds / size)} {unit}"
