"""Every setting of qkd_jax: frozen keyword-only dataclasses, validated when made.

A field's docstring is its help on the command line.
"""

from qkd_jax.config.augment import AugmentConfig
from qkd_jax.config.clock import Clock, step_clock, step_samples
from qkd_jax.config.data import (
    AnyData,
    AudacityData,
    AudioSetData,
    CutData,
    DataConfig,
    DemoData,
    DESEDData,
    ESC50Data,
    FoldData,
    FoldersData,
    FSD50KData,
    ManifestData,
    RavenData,
    TimedData,
    UrbanSound8KData,
)
from qkd_jax.config.events import EventConfig
from qkd_jax.config.features import FeatureConfig
from qkd_jax.config.networks import (
    CRNNConfig,
    DenseNetConfig,
    HeadConfig,
    LSTMConfig,
    Network,
    QuantConfig,
    ResNetConfig,
    StepNetwork,
)
from qkd_jax.config.run import (
    ClipRecipe,
    EventObjective,
    EventRecipe,
    ModelConfig,
    RunConfig,
    is_file,
    is_float,
    is_integer,
    same_parameters,
    with_data,
)
from qkd_jax.config.serialize import from_json, to_json
