"""The page of what it survives says what was counted."""

import json
from pathlib import Path

from benchmarks.reliability.page import page

RESULTS = Path(__file__).parents[2] / "docs/results"


def test_the_page_is_written_from_the_tallies_that_are_kept():
    tallies = [
        json.loads((RESULTS / f"reliability/{name}.json").read_text())
        for name in ("kills", "fuzz", "soak", "prepare")
    ]
    assert (RESULTS / "reliability.md").read_text() == page(*tallies)
