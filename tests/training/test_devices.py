"""One batch over several devices, or several processes: the losses of one device, whatever their number."""

import json
import os
import socket
import subprocess
import sys
import time

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.config import ClipRecipe, LSTMConfig, QuantConfig
from qkd_jax.evaluation.prediction import make_predict
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.state import init_state
from qkd_jax.system.devices import any_process, check_batch, everywhere, spread, wait_for_all, whole_rows
from qkd_jax.training.clips import make_loss
from qkd_jax.training.step import make_train_step
from tests.faults import refused
from tests.training.runs import assert_same_losses, run


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4, 8])
def test_losses_are_those_of_one_device(devices, finished, settings, folder):
    done = run(settings, env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"})
    assert done.returncode == 0, done.stderr
    # `finished` was trained on the two devices of these tests.
    assert_same_losses(folder, finished)


def test_a_batch_has_as_many_rows_for_each_device():
    check_batch("--recipe.batch-size", 6)
    with refused(r"--recipe.batch-size: expected a multiple of the 2 devices, got 7"):
        check_batch("--recipe.batch-size", 7)
    assert [whole_rows(size) for size in (1, 2, 3)] == [2, 2, 4]


def test_rows_lie_on_their_devices_in_order():
    rows = np.arange(12).reshape(6, 2)
    first, second = spread({"x": rows})["x"].addressable_shards
    assert_array_equal(first.data, rows[:3])
    assert_array_equal(second.data, rows[3:])


CORES = """
import json, os, sys
import jax
from qkd_jax.system.devices import use_all_cores

os.sched_getaffinity = lambda _: range(6)
counts = {}
for size in json.loads(sys.argv[1]):
    use_all_cores(size)
    counts[size] = jax.config.jax_num_cpu_devices
print(json.dumps([counts, jax.device_count(), float(jax.numpy.ones(3).sum())]))
"""


def devices_of(sizes, **env):
    """Devices after `use_all_cores` of each batch size in turn, on six cores; and those that JAX finds."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", CORES, json.dumps(list(sizes))]
    done = subprocess.run(command, capture_output=True, text=True, env=kept | env, check=True)
    counts, found, total = json.loads(done.stdout)
    assert total == 3
    return {int(size): count for size, count in counts.items()}, found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, one device is used")
def test_each_core_is_a_device_as_long_as_it_has_an_equal_share_of_eight_rows_or_more():
    counts, found = devices_of([1, *range(7, 100), 24])
    for size, count in counts.items():
        fitting = [n for n in range(1, 7) if size % n == 0 and size / n >= 8]
        assert count == max(fitting, default=1), size
    assert found == 3
    # Whoever sets the number of devices decides.
    counts, found = devices_of([24], XLA_FLAGS="--xla_force_host_platform_device_count=5")
    assert counts == {24: -1} and found == 5


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
    assert_allclose(logits, 2 * features.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
@pytest.mark.parametrize("ask", [lambda: any_process(False), lambda: wait_for_all("here")])
def test_the_failure_of_another_process_is_reported_in_one_line(monkeypatch, error, ask):
    def gone(*_):
        raise error("Gloo AllGather failed: Connection closed by peer\n    at\n")

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("qkd_jax.system.devices.multihost_utils.process_allgather", gone)
    monkeypatch.setattr("qkd_jax.system.devices.multihost_utils.sync_global_devices", gone)
    message = r"--distributed: expected all other processes to be running: .*closed by peer\Z"
    with refused(message):
        ask()


def start(settings, count):
    """`count` processes, with one device each, that train the run of a file of `settings`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_COORDINATOR_ADDRESS": address}
    common |= {"JAX_NUM_PROCESSES": str(count)}
    return [
        run(settings, wait=False, env=os.environ | common | {"JAX_PROCESS_ID": str(index)})
        for index in range(count)
    ]


def outputs_of(processes):
    return [process.communicate(timeout=300) for process in processes]


@pytest.mark.slow
def test_two_processes_train_what_one_does(finished, settings, folder):
    processes = start(settings, 2)
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    (first, _), (second, _) = outputs
    assert "report.html; metrics: " in first and not second
    assert_same_losses(folder, finished)
    assert not list(folder.parent.rglob("*.part"))


@pytest.mark.slow
def test_one_is_killed_and_others_go_on_in_another_number(finished, settings, folder):
    processes = start(settings, 2)
    checkpoints = folder / "models" / "teacher" / "checkpoints"
    while not (checkpoints / "3").is_dir():
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes)
    processes[1].kill()
    # The other can't continue alone, and ends after a timeout.
    outputs = outputs_of(processes)
    assert all(process.returncode for process in processes), outputs
    processes = start(settings, 4)
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert "teacher: resuming from step" in outputs[0][0]
    assert_same_losses(folder, finished)
