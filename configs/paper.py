"""The paper's sizes (Shi et al. 2019): DenseNet-63 and one-layer LSTMs of hidden size 256, clips of 10 s.

Where the paper is silent, validation decided (docs/results/readings.md): quantized students start from the
float one.

qkd-jax train paper --data.root DIR
"""

from qkd_jax.config import DenseNetConfig, LSTMConfig, ModelConfig, QuantConfig, RunConfig

_teachers = ("teacher",)

config = RunConfig(
    name="paper",
    models={
        "teacher": ModelConfig(network=DenseNetConfig(), learning_rate=1e-3),
        "plain": ModelConfig(network=LSTMConfig()),
        "distilled": ModelConfig(network=LSTMConfig(), teachers=_teachers),
        **{
            f"distilled-{bits}": ModelConfig(
                network=LSTMConfig(quant=QuantConfig.paper(bits)),
                teachers=_teachers,
                start="distilled",
                learning_rate=1e-3,
            )
            for bits in (8, 4)
        },
    },
)
