"""Strict JAX: shapes that only fit by rank promotion are mistakes, and so are silent warnings."""

import os
import signal

# Before jax starts: two virtual devices, so that sharding is real.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import dataclasses

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

# A shell's background jobs ignore SIGINT, which subprocesses inherit; the tests send it to both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_config():
    """The function (folder, **changes) -> settings of a run on a few synthesised clips; it takes seconds."""
    from qkd_jax.config import (
        ClipRecipe,
        DemoData,
        DenseNetConfig,
        FeatureConfig,
        LSTMConfig,
        ModelConfig,
        QuantConfig,
        RunConfig,
    )

    four = QuantConfig(weights=4, activations=4, gates=4, cell=16, output=8, ranges="channel")
    config = RunConfig(
        name="tiny",
        features=FeatureConfig(n_mels=8),
        data=DemoData(clip_seconds=0.4, counts=(24, 16, 20)),
        recipe=ClipRecipe(batch_size=8, epochs=2),
        models={
            "teacher": ModelConfig(
                network=DenseNetConfig(blocks=(1, 1), growth=4, stem=4), learning_rate=1e-3
            ),
            "plain": ModelConfig(network=LSTMConfig(hidden_size=4)),
            "four": ModelConfig(
                network=LSTMConfig(convolutions=(3, 4), time_strides=1, hidden_size=4, quant=four),
                teachers=("teacher",),
            ),
        },
    )
    return lambda folder, **changes: dataclasses.replace(config, runs=str(folder), **changes)


@pytest.fixture(scope="session")
def finished(tiny_config, tmp_path_factory):
    """The folder of a finished run, for tests that only read it."""
    from qkd_jax import train

    return train(tiny_config(tmp_path_factory.mktemp("runs"))).folder
