"""The experiment on ESC-50: its tables of folds, and means over folds and seeds."""

import csv
import json

import numpy as np

from experiments import acdnet, esc50
from experiments.cells import Place, Result, write_result
from qkd_jax.config import ManifestData
from qkd_jax.data.sources.manifest import read_manifest

TABLE = """\
filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
2-100210-A-36.wav,2,36,vacuum_cleaner,False,100210,A
5-100210-A-0.wav,5,0,dog,True,100210,A
"""


def test_tables_hold_folds_and_groups_within_them(tmp_path):
    (tmp_path / "esc" / "meta").mkdir(parents=True)
    (tmp_path / "esc" / "audio").mkdir()
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text(TABLE)
    place = Place(tmp_path / "esc", tmp_path / "runs", tmp_path / "cells", tmp_path, "the command")
    folder = esc50.prepared(place).data
    clips = read_manifest(ManifestData(root=str(folder), manifest="esc50.csv", folds=(5,)))
    assert [(each.name, *each.labels, each.group, each.split) for each in clips] == [
        ("audio/1-100032-A-0.wav", "dog", "100032 1", "train"),
        ("audio/2-100210-A-36.wav", "vacuum_cleaner", "100210 2", "valid"),
        ("audio/5-100210-A-0.wav", "dog", "100210 5", "test"),
    ]
    with open(folder / "esc10.csv", newline="") as file:
        assert [row["labels"] for row in csv.DictReader(file)] == ["dog", "dog"]


def test_accuracies_are_means_over_folds_and_ranges_over_seeds(tmp_path):
    def write(name, fold, accuracy):
        result = Result(metrics={"average": {"accuracy": accuracy}, "events": {}}, bytes=150_000)
        write_result(tmp_path / "cells" / f"{name}-fold{fold}.json", result, ["a"], ("x",), np.zeros((1, 1)))

    (tmp_path / "cells").mkdir()
    for fold in esc50.FOLDS:
        write("mn04-distilled-4", fold, 70.0 + fold)
        write("mn04-seed1-distilled-4", fold, 76.0 + fold)
    write("esc10-distilled-4", 2, 90.0)
    table = esc50.parts(tmp_path)["accuracy"]
    assert "| 4 bits | 150,000 | 76.00 ± 3.00 | 90.00 (1 of 5 folds) |" in table
    assert "Micro-ACDNet" in table


def test_micro_acdnet_gets_ten_crops_of_what_is_heard():
    heard = np.arange(2, 40_002) / 2**16
    crops = acdnet.crops(np.r_[np.zeros(500), heard, np.zeros(70)])
    padded = np.r_[np.zeros(15_112), heard, np.zeros(15_112)].astype(np.float32)
    starts = [place * ((len(padded) - 30_225) // 9) for place in range(10)]
    np.testing.assert_array_equal(crops, [padded[start : start + 30_225] for start in starts])
    assert acdnet.crops(np.zeros(9_000)).shape == (10, 30_225)


def test_the_table_beside_micro_acdnet_is_that_of_the_file(tmp_path):
    assert acdnet.table(tmp_path / "none.json") == "Not measured yet."
    row = {"file": "ours.tflite", "bytes": 181_000, "accuracy": 76.25, "milliseconds": 9.6}
    (tmp_path / "some.json").write_text(json.dumps({"machine": "a chip", "models": [row]}))
    assert "| ours.tflite | 181,000 | 76.25 | 10 |" in acdnet.table(tmp_path / "some.json")


def test_only_cells_that_tune_leave_the_test_fold_aside():
    for fold in esc50.FOLDS:
        for cell in esc50.cells(fold):
            tunes = cell.name.startswith("tune-")
            assert cell.config.recipe.final != tunes and cell.config.data.folds == (fold,)
            assert not tunes or fold == esc50.TUNING_FOLD
