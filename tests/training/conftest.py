"""A whole run that takes seconds, and one such run that is finished."""

import dataclasses

import pytest

from qkd_jax.config import (
    DataConfig,
    FeatureConfig,
    LSTMConfig,
    QuantConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
)
from qkd_jax.training.run import train


@pytest.fixture(scope="session")
def tiny_config():
    """The function (folder, **changes) -> settings of a run on a handful of synthesised clips."""

    def tiny_config(folder, **changes):
        config = RunConfig(
            name="tiny",
            runs=str(folder),
            features=FeatureConfig(n_mels=8),
            data=DataConfig(source="demo", clip_seconds=0.4, demo_clips=(24, 16, 20)),
            teacher=TeacherConfig(blocks=(1, 1), growth=4, stem=4),
            students={
                "plain": LSTMConfig(hidden_size=4, distill=False),
                "four": LSTMConfig(
                    convolutions=(3, 4),
                    time_strides=1,
                    hidden_size=4,
                    quant=QuantConfig(weights=4, activations=4, gates=4, cell=16, output=8, ranges="channel"),
                ),
            },
            train=TrainConfig(batch_size=8, teacher_epochs=2, student_epochs=2),
        )
        return dataclasses.replace(config, **changes)

    return tiny_config


@pytest.fixture(scope="session")
def finished(tiny_config, tmp_path_factory):
    """The folder of one finished run, for tests that only look at it."""
    return train(tiny_config(tmp_path_factory.mktemp("runs")))
