"""Timed events on DESED (DCASE 2023, task 4A): its baseline, and a distilled model of a third of its size.

DIR is the folder of the challenge's recipe (DESED_task), with `metadata` and `audio`: metadata/train/weak.tsv
beside audio/train/weak, and so on; or folders SPLIT/audio with SPLIT/strong.tsv.  The metrics need the extra
`sed`.  Two hundred epochs are for a GPU; --recipe.epochs sets fewer.

qkd-jax train desed --data.root DIR
"""

import dataclasses

from qkd_jax.config import (
    AugmentConfig,
    CRNNConfig,
    DESEDData,
    EventObjective,
    EventRecipe,
    FeatureConfig,
    ModelConfig,
    QuantConfig,
    RunConfig,
)

# With embeddings="teacher", or a tagger's .toml, this becomes dual distillation, which takes gigabytes here.
_student = ModelConfig(
    network=CRNNConfig.se_third(), teachers=("teacher",), objective=EventObjective(update="mean_step")
)

config = RunConfig(
    name="desed",
    features=FeatureConfig(n_mels=128, win_length=2048, hop_length=256, n_fft=2048, fmin=0.0),
    data=DESEDData(),
    recipe=EventRecipe(),
    augment=AugmentConfig(mixup=0.2, mixup_share=0.5, time_shift=0.1, time_masks=1),
    models={
        "baseline": ModelConfig(network=CRNNConfig(), objective=EventObjective()),
        "teacher": ModelConfig(network=CRNNConfig.se(32), objective=EventObjective()),
        "student": _student,
        **{
            f"student-{bits}": dataclasses.replace(
                _student,
                network=CRNNConfig.se_third(quant=QuantConfig.per_channel(bits)),
                start="student",
                learning_rate=3e-4,
                epochs=60,
            )
            for bits in (8, 4)
        },
    },
)
