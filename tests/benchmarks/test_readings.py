import dataclasses
from pathlib import Path

import pytest

from benchmarks.readings import CHANGES, best_epoch, changed, main, table
from qkd_jax.command import load_preset, run_command
from qkd_jax.config import InputError, QuantConfig, StudentConfig
from qkd_jax.train.folder import _fields
from qkd_jax.train.log import open_log


@pytest.fixture
def base():
    preset = load_preset("paper", Path(__file__).parents[2] / "configs")
    return dataclasses.replace(preset, students={"student": StudentConfig()})


def test_each_change_changes_what_it_names_and_nothing_else(base):
    differ = {}
    for name in CHANGES:
        before, after = _fields(base), _fields(changed(base, name))
        assert after["name"] == name
        differ[name] = {field for field in before if before[field] != after[field]} - {"name"}
    assert differ.pop("base") == set()
    assert differ.pop("4-bit") == {
        f"students.student.quant.{part}" for part in vars(QuantConfig.paper(4))
    } - {"students.student.quant.ranges"}
    assert differ.pop("4-bit-split") == {
        f"students.student.quant.{part}" for part in vars(QuantConfig.paper(4))
    }
    assert all(len(fields) == 1 for fields in differ.values())
    # No two changes are one.
    assert len({repr(changed(base, name).students) + repr(changed(base, name)) for name in CHANGES}) == len(
        CHANGES
    )


def test_an_unknown_change_is_refused(base):
    with pytest.raises(InputError, match=r"--only: expected some of base, .* got 'tape'"):
        changed(base, "tape")


def test_the_table_has_the_best_epoch_on_validation(tmp_path):
    with open_log(tmp_path / "student", 0) as log:
        for epoch, auc in enumerate((70.0, 80.125, 75.0), 1):
            log(step=epoch, loss=1.0)
            log(step=epoch, epoch=epoch, epoch_loss=1.0, valid={"auc": auc, "eer": 100 - auc})
    row = best_epoch(tmp_path)
    assert row == {"epoch": 2, "auc": 80.125, "eer": 19.875}
    assert table({"base": row}).splitlines()[-1] == "| base | 80.12 | 19.88 | 2 |"


def test_the_command_asks_for_its_data(capsys):
    assert run_command(main, []) == 2
    assert capsys.readouterr().err == "error: --data: expected the folder of the recordings, got none\n"
