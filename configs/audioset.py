"""The paper's subset of AudioSet, for models of the paper's sizes (Shi et al. 2019, section 4.1).

All clips of three events that are on disk, and 36,036 others as negatives, divided 70/10/20.

qkd-jax train audioset --data.root DIR
"""

import dataclasses

from qkd_jax.commands.cli import load_preset
from qkd_jax.config import AudioSetData

config = dataclasses.replace(
    load_preset("paper"),
    name="audioset",
    data=AudioSetData(
        events=("Dog", "Baby cry, infant cry", "Gunshot, gunfire"), negatives=36_036, skip_bad=True
    ),
)
