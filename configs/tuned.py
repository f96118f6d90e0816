"""The paper's models, trained as validation preferred: quantized students start from the float one.

Batches of 32, from 3e-3 to 0 along a cosine, gradients clipped (docs/results/readings.md).  For the paper's
own training, see preset paper.

qkd-jax train tuned --data.root DIR
"""

from qkd_jax.config import DenseNetConfig, LSTMConfig, ModelConfig, QuantConfig, RunConfig

_teachers = ("teacher",)

config = RunConfig(
    name="tuned",
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
