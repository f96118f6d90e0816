"""Several processes on one machine train one run together: real ones, over jax.distributed."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.train.test_mesh import losses

from qkd_jax.config import to_json

COMMAND = """
import sys
from pathlib import Path
from qkd_jax.command import run_command
from qkd_jax.config import RunConfig, from_json
from qkd_jax.mesh import join_processes

def main(arguments):
    from qkd_jax.train.run import train
    join_processes()
    train(from_json(RunConfig, Path(arguments[0]).read_text(), arguments[0]))

sys.exit(run_command(main, sys.argv[1:]))
"""


def start(settings, count):
    """So many processes, each of one device, that train what a file of `settings` says."""
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
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    (first, _), (second, _) = said
    assert "report.html shows them" in first and not second
    for name in ("teacher", "plain", "four"):
        np.testing.assert_allclose(losses(tmp_path / "tiny", name), losses(finished, name), rtol=1e-4)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_one_is_killed_and_others_go_on_in_another_number(finished, settings, tmp_path):
    processes = start(settings, 2)
    checkpoints = tmp_path / "tiny" / "teacher" / "checkpoints"
    while not (checkpoints / "3").is_dir():
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes)
    processes[1].kill()
    # The other can't go on by itself, and ends when it has waited in vain.
    said = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode for process in processes), said
    processes = start(settings, 4)
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert "teacher: going on from step" in said[0][0]
    for name in ("teacher", "plain", "four"):
        np.testing.assert_allclose(losses(tmp_path / "tiny", name), losses(finished, name), rtol=1e-4)
