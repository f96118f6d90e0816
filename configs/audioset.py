"""The paper's subset of AudioSet, for models of the paper's sizes (Shi et al. 2019, section 4.1).

All clips of three events that are on disk, and 36,036 others as negatives, divided 70/10/20:

python train.py audioset --data.root DIR
"""

import dataclasses
from pathlib import Path

from qkd_jax.commands.cli import load_preset
from qkd_jax.config import DataConfig

config = dataclasses.replace(
    load_preset("paper", Path(__file__).parent),
    name="audioset",
    data=DataConfig(
        source="audioset",
        events=("Dog", "Baby cry, infant cry", "Gunshot, gunfire"),
        negatives=36_036,
        skip_bad=True,
    ),
)
