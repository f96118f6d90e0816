"""Preset small with a tagger, on 3,000 scenes and on few recordings: what trains on what, and the pages."""

import collections
import dataclasses
import re

import numpy as np
import pytest

from benchmarks.common import EVENTS, RESULTS, ROOT
from experiments import curve, few, own, scenes
from qkd_jax.commands.cli import load_preset


def test_a_cell_is_the_command_of_the_readme():
    [cell] = own.cells(2)
    students = [name for name in load_preset("small").models if name != "teacher"]
    assert cell.results == ("zero-shot", "head", *students, own.CONTROL) and cell.config.recipe.seed == 2
    assert [cell.config.models[name].teachers for name in students] == [("head",)] * 3
    assert "--teacher yamnet.toml" in (ROOT / "README.md").read_text()
    control, four = cell.config.models[own.CONTROL], cell.config.models["distilled-4"]
    assert control.network == cell.config.models["distilled"].network
    assert dataclasses.replace(control, network=four.network) == four


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
    others = few.further(rows, chosen, draw)
    assert not {row["filename"] for row in others} & {row["filename"] for row in chosen}
    valid = {row["source_id"] for row in drawn if row["split"] == "valid"}
    assert {row["split"] for row in others} == {"train"} and not {row["source_id"] for row in others} & valid


def test_points_of_the_curve_have_less_of_one_thing_each():
    whole = own.config("x", 0)
    by_name = {cell.name: cell.config for cell in curve.cells(0)}
    assert by_name["no-views"].augment == dataclasses.replace(whole.augment, views=0)
    assert by_name["scenes-750"].augment == whole.augment and by_name["scenes-750"].data.manifest == "750.csv"
    epochs = {name: model.epochs for name, model in by_name["quarter"].models.items()}
    assert (epochs["quarter-distilled"], epochs["quarter-distilled-4"]) == (4, 1)
    assert by_name["quarter"].models["quarter-head"] == whole.models["head"]
    for config in by_name.values():
        assert config.recipe == whole.recipe


def test_fewer_scenes_are_a_part_of_more():
    rows = standard_rows()
    few_rows, more = curve.some_of(rows, 50), curve.some_of(rows, 100)
    assert [sum(row["split"] == "train" for row in some) for some in (few_rows, more)] == [50, 100]
    assert [row for row in more if row in few_rows] == few_rows and few_rows == curve.some_of(rows, 50)
    assert [row for row in few_rows if row["split"] == "test"] == [
        row for row in rows if row["split"] == "test"
    ]


def test_students_on_scenes_have_as_many_updates_and_learn_from_the_same_head():
    [cell] = scenes.cells(1)
    config, whole = cell.config, own.config("x", 1)
    assert cell.results == tuple(scenes.ROWS) and (config.augment, config.recipe) == (
        whole.augment,
        whole.recipe,
    )
    clips, views = 3000, config.augment.views_per_clip(3000)
    updates = [
        config.models[name].epochs * clips * (1 + views * bool(config.models[name].teachers))
        for name in ("plain-256", "distilled-256", "distilled-256-4")
    ]
    assert len(set(updates)) == 1
    assert config.models["head"] == whole.models["head"]


def test_models_of_several_sizes_have_names_of_their_own():
    names = [name for cell in few.cells(1) for name in cell.results]
    assert len(names) == len(set(names)) and "150-distilled-4" in names
    config = few.cells(1)[0].config
    assert config.models["20-distilled-4"].start == "20-distilled"
    assert config.models["20-distilled"].teachers == ("20-head",)


PAGES = [(each.__name__.rpartition(".")[2], each.parts) for each in (own, few, curve, scenes)]


@pytest.mark.parametrize(("name", "parts"), PAGES)
def test_pages_are_those_of_the_results(name, parts):
    expected, pages = parts(RESULTS / name), [RESULTS / f"{name}.md"]
    for page in [*pages, ROOT / "README.md"] if name == "own" else pages:
        marked = re.findall(r"<!-- begin ([\w-]+) -->(.*?)<!-- end \1 -->", page.read_text(), re.S)
        found = {part: text.strip() for part, text in marked if part in expected}
        assert found == (expected if page in pages else {name: expected[name]})
