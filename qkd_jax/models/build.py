"""From the configuration of a network to its Flax module."""

from typing import TypeAlias

import flax.linen as nn

from qkd_jax.config import CRNNConfig, HeadConfig, LSTMConfig, Network, ResNetConfig, is_integer
from qkd_jax.models.crnn import CRNN
from qkd_jax.models.densenet import DenseNet
from qkd_jax.models.head import Head
from qkd_jax.models.lstm import LSTM
from qkd_jax.models.lstm_integer import IntegerLSTM
from qkd_jax.models.resnet import ResNet

Model: TypeAlias = nn.Module


def build_model(config: Network, events: int, embedding: int = 0, classes: int = 0) -> Model:
    """The Flax module of `config`: log-mel energies [batch, frames, mels] to logits [batch, events].

    A head maps outputs of taggers, [batch, windows, size].  Heads, LSTMs and CRNNs also have the method
    `step_logits`, which returns `Logits`, with those of every step.
    `embedding` is the size of a CRNN's embedding layer, and `classes` the number of a tagger's classes whose
    logits an LSTM also gives; 0 for none.

    >>> build_model(LSTMConfig(), events=3).config.hidden_size
    256
    """
    if isinstance(config, CRNNConfig):
        return CRNN(config, events, embedding)
    if isinstance(config, HeadConfig):
        return Head(config, events)
    if isinstance(config, LSTMConfig):
        return (IntegerLSTM if is_integer(config) else LSTM)(config, events, classes)
    return ResNet(config, events) if isinstance(config, ResNetConfig) else DenseNet(config, events)
