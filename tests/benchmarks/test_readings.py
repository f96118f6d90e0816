import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.readings import CHAIN, CHANGES, best_epoch, chain_gradient, chain_quant, changed, main, table
from qkd_jax.commands.cli import load_preset, run_command
from qkd_jax.config import LSTMConfig, QuantConfig
from qkd_jax.errors import InputError
from qkd_jax.models.build import build_model
from qkd_jax.quant.fake_quant import fake_quant
from qkd_jax.run_folder.folder import _fields
from qkd_jax.run_folder.log import open_log


@pytest.fixture
def base():
    preset = load_preset("paper", Path(__file__).parents[2] / "configs")
    return dataclasses.replace(preset, students={"student": LSTMConfig()})


def test_each_change_changes_what_it_names_and_nothing_else(base):
    differ = {}
    for name in CHANGES:
        before, after = _fields(base), _fields(changed(base, name))
        assert after["name"] == name
        differ[name] = {field for field in before if before[field] != after[field]} - {"name"}
    assert differ.pop("base") == set()
    parts = {f"students.student.quant.{part}" for part in ("weights", "activations", "gates", "cell")}
    assert differ.pop("4-bit") == parts
    assert differ.pop("4-bit-split") == parts | {"students.student.quant.ranges"}
    going_on = parts | {"students.student.start"}
    assert differ.pop("4-bit-from-float-3e-3") == going_on
    for name in ("4-bit-from-float", "4-bit-from-float-3e-4", CHAIN):
        assert differ.pop(name) == going_on | {"students.student.learning_rate"}
    assert changed(base, CHAIN).students["student"].start == "runs/base/student"
    assert all(len(fields) == 1 for fields in differ.values())
    # No two changes are one, but for the one that changes the gradient.
    assert len({repr(_fields(changed(base, name)) | {"name": ""}) for name in CHANGES}) == len(CHANGES) - 1


def test_the_chain_gradient_gives_the_extremes_their_share_of_the_rounding_errors():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 9)), jnp.float32)
    towards = np.random.default_rng(1).normal(size=(5, 9)).astype(np.float32)
    np.testing.assert_allclose(chain_quant(x, 3), fake_quant(x, 3), atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(chain_quant(x, 3) * towards))(x)
    expected = towards.astype(np.float64)
    for row, into, toward in zip(np.asarray(x, np.float64), expected, towards):
        exact = (row - row.min()) / (row.max() - row.min()) * 7
        share = np.sum(toward * (np.round(exact) - exact)) / 7
        into[row.argmax()] += share
        into[row.argmin()] -= share
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.slow
def test_the_chain_gradient_changes_the_slope_of_a_student_and_not_its_logits():
    model = build_model(LSTMConfig(hidden_size=4, quant=QuantConfig.paper(4)), 2)
    features = jax.random.normal(jax.random.key(0), (2, 9, 3))
    variables = model.init(jax.random.key(1), features)

    def slopes():
        def loss(params):
            return jnp.sum(model.apply(variables | {"params": params}, features) ** 2)

        return jax.value_and_grad(loss)(variables["params"])

    value, plain = slopes()
    with chain_gradient():
        same, chained = slopes()
    np.testing.assert_allclose(same, value, rtol=1e-5)
    apart = optax.tree.norm(optax.tree.sub(chained, plain)) / optax.tree.norm(plain)
    assert 1e-3 < apart < 0.3
    np.testing.assert_array_equal(slopes()[1]["lstm"][0]["w"], plain["lstm"][0]["w"])  # only within it


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
