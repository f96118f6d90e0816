"""The paper's models and training (Shi et al. 2019): DenseNet-63, one-layer LSTMs, clips of 10 s.

Adam at a constant 1e-3, batches of 64, no clipping of gradients, and students quantized from the start.
What the paper leaves open is as in preset tuned, which also trains as validation preferred.

qkd-jax train paper --data.root DIR
"""

from qkd_jax.config import ClipRecipe, DenseNetConfig, LSTMConfig, ModelConfig, QuantConfig, RunConfig

_teachers = ("teacher",)

config = RunConfig(
    name="paper",
    recipe=ClipRecipe(batch_size=64, learning_rate=1e-3, schedule="constant", clip_norm=None),
    models={
        "teacher": ModelConfig(network=DenseNetConfig(pooling="time")),
        "plain": ModelConfig(network=LSTMConfig()),
        "distilled": ModelConfig(network=LSTMConfig(), teachers=_teachers),
        **{
            f"distilled-{bits}": ModelConfig(
                network=LSTMConfig(quant=QuantConfig.paper(bits)), teachers=_teachers
            )
            for bits in (8, 4)
        },
    },
)
