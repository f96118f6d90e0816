"""Sound event detection on DESED (DCASE 2023, task 4A): its baseline, and a third of that, taught.

DIR is the folder of the challenge's recipe (DESED_task), with `metadata` and `audio`: metadata/train/weak.tsv
beside audio/train/weak, and so on; or the layout of soundscapes with SPLIT/audio and SPLIT/strong.tsv.  The
metrics need the extra `sed`.  Two hundred epochs are for a GPU: --train.epochs takes fewer.

python train.py desed --data.root DIR
"""

import dataclasses

from qkd_jax.config import AugmentConfig, CRNNConfig, DataConfig, ModelConfig, QuantConfig, RunConfig

# With embeddings="teacher", or a tagger's .toml, too, this is dual distillation; they take gigabytes here.
_student = ModelConfig(network=CRNNConfig.se_third(), teachers=("teacher",), through="mean_step")

config = RunConfig(
    name="desed",
    data=DataConfig(source="desed"),
    models={
        "baseline": ModelConfig(),
        "teacher": ModelConfig(network=CRNNConfig.se(32)),
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
    augment=AugmentConfig(mixup=0.2, mixup_share=0.5, time_shift=0.1, time_masks=1),
)
