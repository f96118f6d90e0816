"""The paper's models and training (Shi et al. 2019): DenseNet-63, one-layer LSTMs, clips of 10 s.

Adam at a constant 1e-3, batches of 64, no clipping of gradients, eq. 2 as printed with its missing sign and
σ, and students quantized from the start.  w_c is negatives/positives: the paper says the reverse, but aims at
balance.  Epochs, alpha and temperature, which it doesn't give, are as in preset tuned, which trains as
validation preferred.

qkd-jax train paper --data.root DIR
"""

from qkd_jax.config import ClipRecipe, DenseNetConfig, LSTMConfig, ModelConfig, QuantConfig, RunConfig

_teachers = ("teacher",)

config = RunConfig(
    name="paper",
    recipe=ClipRecipe(batch_size=64, learning_rate=1e-3, schedule="constant", clip_norm=None, form="paper"),
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
