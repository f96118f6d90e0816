"""Strict JAX: shapes that only fit by rank promotion are mistakes, and so are silent warnings."""

import os
import shutil
import signal
from pathlib import Path

# Before jax starts: two virtual devices, so that sharding is real.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs are compiled once for all workers, and for the commands that tests run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from dataclasses import replace

import jax
import pytest
from filelock import FileLock

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

# A shell's background jobs ignore SIGINT, which subprocesses inherit; the tests send it to both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def compiled_quickly():
    """Compile without optimisation: for modules that compare no bits, and whose time is the compiler's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_config():
    """The function (folder, **changes) -> settings of a run on a few synthesised clips; it takes seconds."""
    import qkd_jax.config as cfg

    four = cfg.QuantConfig(weights=4, activations=4, gates=4, cell=16, output=8, ranges="channel")
    densenet = cfg.DenseNetConfig(blocks=(1, 1), growth=4, stem=4)
    lstm = cfg.LSTMConfig(convolutions=(3, 4), time_strides=1, hidden_size=4, quant=four)
    models = {
        "teacher": cfg.ModelConfig(network=densenet, learning_rate=1e-3),
        "plain": cfg.ModelConfig(network=cfg.LSTMConfig(hidden_size=4)),
        "four": cfg.ModelConfig(network=lstm, teachers=("teacher",)),
    }
    config = cfg.RunConfig(
        name="tiny",
        features=cfg.FeatureConfig(n_mels=8),
        data=cfg.DemoData(clip_seconds=0.4, counts=(24, 16, 20)),
        recipe=cfg.ClipRecipe(batch_size=8, epochs=2),
        models=models,
    )
    return lambda folder, **changes: replace(config, runs=str(folder), **changes)


@pytest.fixture(scope="session")
def finished(tiny_config, tmp_path_factory, worker_id):
    """The folder of a finished run, for tests that only read it: trained once, copied for each worker."""
    from qkd_jax import train

    runs, base = tmp_path_factory.mktemp("runs"), tmp_path_factory.getbasetemp()
    trained = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(f"{trained}.lock"):
        if not (trained / "tiny" / "report.html").exists():
            train(tiny_config(trained))
    shutil.copytree(trained, runs, dirs_exist_ok=True)
    settings = runs / "tiny" / "config.json"
    settings.write_text(settings.read_text().replace(str(trained), str(runs)))
    return runs / "tiny"
