"""From settings to a model."""

from typing import TypeAlias

import flax.linen as nn

from qkd_jax.config import StudentConfig, TeacherConfig
from qkd_jax.config_sed import CRNNConfig
from qkd_jax.models.crnn import CRNN
from qkd_jax.models.densenet import DenseNet
from qkd_jax.models.integer import IntegerStudent
from qkd_jax.models.lstm import LSTMStudent
from qkd_jax.models.resnet import ResNet

Model: TypeAlias = nn.Module


def build_model(config: TeacherConfig | StudentConfig | CRNNConfig, events: int, embedding: int = 0) -> Model:
    """The Flax module, log-mel energies [batch, frames, mels] -> logits [batch, events], of `config`.

    Of students and CRNNs the method `detect` has the `Detections`, of every step too; `embedding` is the
    size of a CRNN's.
    """
    if isinstance(config, CRNNConfig):
        return CRNN(config, events, embedding)
    if isinstance(config, StudentConfig):
        return (IntegerStudent if config.quant.scheme == "integer" else LSTMStudent)(config, events)
    return ResNet(config, events) if config.architecture == "resnet" else DenseNet(config, events)
