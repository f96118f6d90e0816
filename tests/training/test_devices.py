"""One batch over several devices: the losses of one device, whatever their number."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qkd_jax.config import ClipRecipe, LSTMConfig, QuantConfig, to_json
from qkd_jax.errors import InputError
from qkd_jax.evaluation.prediction import make_predict
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.state import init_state
from qkd_jax.system.devices import any_process, check_batch, everywhere, spread, wait_for_all, whole_rows
from qkd_jax.training.clips import make_loss
from qkd_jax.training.step import make_train_step

COMMAND = """
import sys
from pathlib import Path
from qkd_jax import train
from qkd_jax.config import RunConfig, from_json
train(from_json(RunConfig, Path(sys.argv[1]).read_text(), sys.argv[1]))
"""


def losses(folder, name):
    """Loss and norm of the gradient at each step of a model of the run in `folder`."""
    records = map(json.loads, (folder / "models" / name / "log.jsonl").read_text().splitlines())
    return [(record["loss"], record["grad_norm"]) for record in records if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_losses_are_those_of_one_device(devices, finished, tiny_config, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text(to_json(tiny_config(tmp_path)))
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run([sys.executable, "-c", COMMAND, settings], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # `finished` was trained on the two devices of these tests.
    for name in ("teacher", "plain", "four"):
        np.testing.assert_allclose(losses(tmp_path / "tiny", name), losses(finished, name), rtol=1e-4)


def test_a_batch_has_as_many_rows_for_each_device():
    check_batch("--recipe.batch-size", 6)
    with pytest.raises(InputError, match=r"--recipe.batch-size: expected a multiple of the 2 devices, got 7"):
        check_batch("--recipe.batch-size", 7)
    assert [whole_rows(size) for size in (1, 2, 3)] == [2, 2, 4]


def test_rows_lie_on_their_devices_in_order():
    rows = np.arange(12).reshape(6, 2)
    first, second = spread({"x": rows})["x"].addressable_shards
    np.testing.assert_array_equal(first.data, rows[:3])
    np.testing.assert_array_equal(second.data, rows[3:])


@pytest.mark.parametrize("quant", [QuantConfig(), QuantConfig.paper(4)])
def test_devices_exchange_gradients_and_no_activations(quant):
    student, features = LSTMConfig(hidden_size=8, quant=quant), np.zeros((4, 30, 6), np.float32)
    model, optimizer = build_model(student, 2), optax.sgd(0.1)
    norm = np.zeros(6, np.float32), np.ones(6, np.float32)
    state = everywhere(init_state(model, optimizer, (30, 6), norm, seed=0))
    batch = spread({"features": features, "labels": np.ones((4, 2), np.float32)})
    step = make_train_step(model, optimizer, make_loss(ClipRecipe(), jnp.ones(2), None))
    program = step.lower(state, batch).compile().as_text()
    assert "all-reduce" in program and "all-gather" not in program


def test_logits_of_an_odd_number_of_clips():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, features):
            return self.param("scale", nn.initializers.ones, ()) * features.sum(axis=1)

    features = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    logits = make_predict(Scaled())({"params": {"scale": np.float32(2)}}, features)
    np.testing.assert_allclose(logits, 2 * features.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
@pytest.mark.parametrize("ask", [lambda: any_process(False), lambda: wait_for_all("here")])
def test_the_failure_of_another_process_is_reported_in_one_line(monkeypatch, error, ask):
    def gone(*_):
        raise error("Gloo AllGather failed: Connection closed by peer\n    at\n")

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("qkd_jax.system.devices.multihost_utils.process_allgather", gone)
    monkeypatch.setattr("qkd_jax.system.devices.multihost_utils.sync_global_devices", gone)
    message = r"--distributed: expected all other processes to be running: .*closed by peer\Z"
    with pytest.raises(InputError, match=message):
        ask()
