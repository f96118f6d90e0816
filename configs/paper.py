"""The paper's sizes (Shi et al. 2019): DenseNet-63 and one-layer LSTMs of 256 units, clips of 10 s.

Where the paper is silent, validation has spoken (docs/results/readings.md): quantized students go on
from the float one.

python train.py paper --data.root DIR
"""

from qkd_jax.config import LSTMConfig, QuantConfig, RunConfig

config = RunConfig(
    name="paper",
    students={
        "plain": LSTMConfig(distill=False),
        "distilled": LSTMConfig(),
        "distilled-8": LSTMConfig(quant=QuantConfig.paper(8), start="distilled", learning_rate=1e-3),
        "distilled-4": LSTMConfig(quant=QuantConfig.paper(4), start="distilled", learning_rate=1e-3),
    },
)
