"""Preset small with a tagger, on 3,000 scenes and on few recordings: what trains on what, and the pages."""

import collections
import re

import numpy as np
import pytest

from benchmarks.common import EVENTS, RESULTS, ROOT
from experiments import few, own
from qkd_jax.commands.cli import load_preset


def test_a_cell_is_the_command_of_the_readme():
    [cell] = own.cells(2)
    students = [name for name in load_preset("small").models if name != "teacher"]
    assert cell.results == ("zero-shot", "head", *students) and cell.config.recipe.seed == 2
    assert [cell.config.models[name].teachers for name in students] == [("head",)] * 3
    assert "--teacher yamnet.toml" in (ROOT / "README.md").read_text()


def standard_rows():
    source = np.random.default_rng(0)
    return [
        {"filename": f"{index}.ogg", "labels": label, "split": split, "source_id": f"{label}{index // 3}"}
        for index, (label, split) in enumerate(
            (label, split) for split in ("train", "test") for label in ("", *EVENTS) for _ in range(60)
        )
        if source.random() < 0.9
    ]


@pytest.mark.parametrize("size", few.SIZES)
@pytest.mark.parametrize("draw", [0, 1])
def test_a_draw_is_balanced_and_no_group_is_in_two_splits(size, draw):
    rows = standard_rows()
    chosen = few.draw_of(rows, size, draw)
    drawn = [row for row in chosen if row["split"] != "test"]
    assert len(chosen) - len(drawn) == sum(row["split"] == "test" for row in rows)
    assert len(drawn) == len({row["filename"] for row in drawn}) == size
    kinds = collections.Counter(row["labels"] for row in drawn)
    assert max(kinds.values()) - min(kinds.values()) <= 1 and kinds.keys() == {"", *EVENTS}
    for kind in kinds:
        by_split = {
            split: {row["source_id"] for row in drawn if (row["labels"], row["split"]) == (kind, split)}
            for split in ("train", "valid")
        }
        assert all(by_split.values()) and not by_split["train"] & by_split["valid"]
    assert chosen == few.draw_of(rows, size, draw) != few.draw_of(rows, size, draw + 1)


def test_models_of_several_sizes_have_names_of_their_own():
    names = [name for cell in few.cells(1) for name in cell.results]
    assert len(names) == len(set(names)) and "150-distilled-4" in names
    config = few.cells(1)[0].config
    assert config.models["20-distilled-4"].start == "20-distilled"
    assert config.models["20-distilled"].teachers == ("20-head",)


@pytest.mark.parametrize(("name", "parts"), [("own", own.parts), ("few", few.parts)])
def test_pages_are_those_of_the_results(name, parts):
    pages = [RESULTS / f"{name}.md", *([ROOT / "README.md"] if name == "own" else [])]
    for page in pages:
        [part] = re.findall(rf"<!-- begin {name} -->(.*?)<!-- end {name} -->", page.read_text(), re.S)
        assert part.strip() == parts(RESULTS / name)[name]
