"""Several processes on one machine train one run together, over jax.distributed."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from qkd_jax.config import to_json
from tests.training.test_devices import losses

COMMAND = """
import sys
from pathlib import Path
from qkd_jax.commands.cli import run_command
from qkd_jax.config import RunConfig, from_json
from qkd_jax.system.devices import join_processes

def main(arguments):
    from qkd_jax import train
    join_processes()
    train(from_json(RunConfig, Path(arguments[0]).read_text(), arguments[0]))

sys.exit(run_command(main, sys.argv[1:]))
"""


def start(settings, count):
    """`count` processes, with one device each, that train the run of a file of `settings`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, settings],
            env=common | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


@pytest.fixture
def settings(tiny_config, tmp_path):
    """A file with the settings of a run in `tmp_path`."""
    path = tmp_path / "settings.json"
    path.write_text(to_json(tiny_config(tmp_path)))
    return path


@pytest.mark.slow
def test_two_processes_train_what_one_does(finished, settings, tmp_path):
    processes = start(settings, 2)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (first, _), (second, _) = outputs
    assert "report.html; metrics: " in first and not second
    for name in ("teacher", "plain", "four"):
        np.testing.assert_allclose(losses(tmp_path / "tiny", name), losses(finished, name), rtol=1e-4)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_one_is_killed_and_others_go_on_in_another_number(finished, settings, tmp_path):
    processes = start(settings, 2)
    checkpoints = tmp_path / "tiny" / "models" / "teacher" / "checkpoints"
    while not (checkpoints / "3").is_dir():
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes)
    processes[1].kill()
    # The other can't continue alone, and ends after a timeout.
    outputs = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode for process in processes), outputs
    processes = start(settings, 4)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert "teacher: resuming from step" in outputs[0][0]
    for name in ("teacher", "plain", "four"):
        np.testing.assert_allclose(losses(tmp_path / "tiny", name), losses(finished, name), rtol=1e-4)
