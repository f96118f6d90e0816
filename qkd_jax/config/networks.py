"""Network architectures.  Their training settings are in `qkd_jax.config.run`."""

import dataclasses
import math
from operator import attrgetter
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.fields import STRICT, Bits, Count, Decay, Positive

Pools = tuple[tuple[Count, Count], ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantConfig:
    """Bit widths of a quantized network (eq. 6): 2 to 16, or 32 for off.

    >>> QuantConfig.paper(4).cell
    16
    """

    scheme: Literal["paper", "integer"] = "paper"
    """paper: dynamic range per vector and step; integer: static scales, integer-only arithmetic."""

    weights: Bits = 32
    """Weights of the LSTM, one range per gate matrix, and of convolutions, one per kernel; see `ranges`."""
    activations: Bits = 32
    """Inputs h and x of the LSTM's matrix products, and of convolutions; one range per vector or frame."""
    gates: Bits = 32
    """f, i, o, the candidate, and tanh of the cell."""
    cell: Bits = 32
    """Cell state when read; 16 in the paper, since fewer bits make training diverge."""
    output: Bits = 32
    """Weights and inputs of the output layers, one range each; 32 in the paper."""
    ranges: Literal["joint", "split", "channel"] = "joint"
    """joint: h and x share a range, and W_h and W_x do; split: separate ranges; channel: split, with one
    weight range per output channel."""
    gradient: Literal["identity", "chain"] = "identity"
    """Gradient of rounding between minimum and maximum: identity, with both constant (eq. 4), or chain, by
    the chain rule through both."""

    @classmethod
    def paper(cls, bits: int) -> "QuantConfig":
        """The paper's choice: everything at `bits`, the cell at 16."""
        return cls(weights=bits, activations=bits, gates=bits, cell=16)

    @classmethod
    def per_channel(cls, bits: int) -> "QuantConfig":
        """Everything at `bits`, output layers included, the cell at 16, one range per output channel."""
        return cls(weights=bits, activations=bits, gates=bits, cell=16, output=bits, ranges="channel")

    @classmethod
    def integer(cls, weights: int, activations: int = 8) -> "QuantConfig":
        """The integer-only scheme: gates and cell at 16 bits, output layers at 8."""
        return cls(
            scheme="integer",
            weights=weights,
            activations=activations,
            gates=16,
            cell=16,
            output=8,
            ranges="channel",
        )

    def __post_init__(self) -> None:
        few = max(self.weights, self.activations, self.output) <= 8
        if self.scheme == "integer" and self.gradient != "identity":
            raise ValueError(f"gradient: expected identity in the integer-only scheme, got {self.gradient}")
        if self.scheme == "integer" and self.ranges != "channel":
            raise ValueError(f"ranges: expected channel in the integer-only scheme, got {self.ranges}")
        if self.scheme == "integer" and not (few and (self.gates, self.cell) == (16, 16)):
            raise ValueError(
                "scheme: expected weights, activations, output of at most 8 bits and gates, cell of 16 for "
                f"integer, got {self.weights}, {self.activations}, {self.output}, {self.gates}, {self.cell}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DenseNetConfig:
    """A DenseNet with bottlenecks (Huang et al. 2017); the default is the paper's DenseNet-63."""

    architecture: Literal["densenet"] = "densenet"
    blocks: Annotated[tuple[Count, ...], Field(min_length=1)] = (3, 6, 12, 8)
    """Layers of each block: DenseNet-63 has 3 6 12 8, DenseNet-121 has 6 12 24 16."""
    growth: Count = 32
    """Channels that each layer adds."""
    stem: Count = 64
    """Channels of the first convolution."""
    bottleneck: Count = 4
    """Bottleneck channels as a multiple of growth."""
    pooling: Literal["all", "time"] = "all"
    """Input of the output layer: the mean over time and mel bands, or over time alone."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the convolutions; parameters and statistics stay float32."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResNetConfig:
    """A ResNet with bottlenecks (He et al. 2016); the default is ResNet-50."""

    architecture: Literal["resnet"] = "resnet"
    blocks: Annotated[tuple[Count, ...], Field(min_length=1)] = (3, 4, 6, 3)
    """Residual blocks of each stage: ResNet-50 has 3 4 6 3."""
    stem: Count = 64
    """Channels of the first convolution and width of the first stage; it doubles from stage to stage."""
    bottleneck: Count = 4
    """Output channels of a block, as a multiple of its stage's width."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the convolutions; parameters and statistics stay float32."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    """A small classifier on the outputs of pretrained taggers, fitted in seconds, as a teacher."""

    architecture: Literal["head"] = "head"
    taggers: Annotated[tuple[str, ...], Field(min_length=1)]
    """Descriptions of the taggers, TOML files (docs/teachers.md)."""
    fit: bool = True
    """Fit to the labels; if not, the taggers' own classes are the result (zero-shot)."""
    fewest: Count = 5
    """Events with fewer positive training clips aren't fitted, if they have classes of a tagger."""
    components: Count | None = 192
    """Principal components of each tagger's scores, and of its layer; none uses the values themselves."""
    hidden_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Width of the hidden layer; 0 for logistic regression."""
    penalties: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.03, 0.1, 0.3, 1.0, 3.0)
    """Weights of the squared parameters in the loss, to choose from on validation; the last among ties."""

    @property
    def stride(self) -> int:
        """Frames from one step to the next: its windows are spread over such steps."""
        return 4

    @property
    def receptive_field(self) -> int:
        """Frames that a step stands for."""
        return self.stride

    def steps(self, frames: int) -> int:
        """Steps of `frames` frames."""
        return frames // self.stride


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LSTMConfig:
    """An LSTM, with convolutions in front if given; the default is the paper's: one layer, hidden size 256.

    >>> LSTMConfig(convolutions=(16, 32), time_strides=1).receptive_field
    7
    """

    architecture: Literal["lstm"] = "lstm"
    convolutions: tuple[Count, ...] = ()
    """Channels of the 3 x 3 convolutions in front of the LSTM; each halves the mel bands, rounded up."""
    time_strides: Annotated[int, Field(ge=0)] = 0
    """Leading convolutions that also halve the frame rate."""
    layers: Count = 1
    """Layers of the LSTM."""
    hidden_size: Count = 256
    """Width of the LSTM's hidden state."""
    pooling: Literal["last", "mean", "attention"] = "last"
    """Input of the output layer: the last state, the mean over time, or all states, weighted by attention."""
    quant: QuantConfig = QuantConfig()
    """Bit widths for training and inference."""

    def __post_init__(self) -> None:
        if self.time_strides > len(self.convolutions):
            raise ValueError(
                f"time_strides: expected at most {len(self.convolutions)}, the number of convolutions, "
                f"got {self.time_strides}"
            )

    def quantized(self, quant: QuantConfig) -> "LSTMConfig":
        """The network with the bit widths `quant`."""
        return dataclasses.replace(self, quant=quant)

    def conv_stride(self, index: int) -> int:
        """Frames from one output of convolution `index` to the next."""
        return 2 if index < self.time_strides else 1

    def has_parameters_of(self, other: Any) -> bool:
        """True if both have the same parameters."""
        shape = attrgetter("convolutions", "time_strides", "layers", "hidden_size", "pooling")
        return isinstance(other, LSTMConfig) and shape(self) == shape(other)

    @property
    def receptive_field(self) -> int:
        """Frames that a step of the LSTM reads, through 3-tap convolutions without padding."""
        frames = 1
        for index in reversed(range(len(self.convolutions))):
            frames = (frames - 1) * self.conv_stride(index) + 3
        return frames

    @property
    def stride(self) -> int:
        """Frames from one step of the LSTM to the next."""
        return 2**self.time_strides

    def steps(self, frames: int) -> int:
        """Steps of the LSTM over `frames` frames."""
        return max((frames - self.receptive_field) // self.stride + 1, 0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CRNNConfig:
    """Convolutions, a GRU, and an output layer at each step; by default DESED's baseline (DCASE 2023, 4A)."""

    architecture: Literal["crnn"] = "crnn"
    trunk: Literal["gated", "se", "separable", "resnet", "densenet"] = "gated"
    """Block type: gated linear units, context gating with SE and tfwSE (Nam & Park 2023), or these kinds."""
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 64, 128, 128, 128, 128)
    """Channels of each block."""
    pools: Pools = ((2, 2), (2, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2))
    """Average-pool size (frames, bands) after each block."""
    hidden_size: Count = 128
    """Width of the GRU's hidden state, in each direction."""
    layers: Count = 2
    """Layers of the GRU."""
    bidirectional: bool = True
    """Bidirectional GRU (requires the whole clip)."""
    dropout: Decay = 0.5
    """Dropout rate after each block, and before and after the GRU."""
    quant: QuantConfig = QuantConfig()
    """Bit widths for training and inference, in the paper's scheme."""

    def __post_init__(self) -> None:
        if len(self.pools) != len(self.channels):
            raise ValueError(
                f"pools: expected one for each of {len(self.channels)} blocks, got {len(self.pools)}"
            )
        if self.quant.scheme == "integer":
            raise ValueError("quant.scheme: expected paper for a CRNN, got integer")

    @classmethod
    def se(cls, width: int, **fields: Any) -> "CRNNConfig":
        """SE-CRNN of `width` w: channels w, 2w, 4w, 8w four times, and a GRU of 8w."""
        widths = (1, 2, 4, 8, 8, 8, 8)
        return cls(
            trunk="se", channels=tuple(width * each for each in widths), hidden_size=8 * width, **fields
        )

    @classmethod
    def se_third(cls, **fields: Any) -> "CRNNConfig":
        """SE-CRNN with about a third of the baseline's parameters.

        Xiao & Das (2024) report an "SE-CRNN-16" with a third; no single width has that, so we chose these.
        """
        return cls(trunk="se", channels=(16, 32, 64, 64, 64, 64, 64), hidden_size=64, **fields)

    @property
    def receptive_field(self) -> int:
        """Frames that a step pools; convolutions reach further on either side."""
        return self.stride

    @property
    def stride(self) -> int:
        """Frames from one step to the next."""
        return math.prod(frames for frames, _ in self.pools)

    def steps(self, frames: int) -> int:
        """Steps of the GRU over `frames` frames."""
        for joined, _ in self.pools:
            frames //= joined
        return frames

    def has_parameters_of(self, other: Any) -> bool:
        """True if both have the same parameters."""
        return isinstance(other, CRNNConfig) and self == dataclasses.replace(
            other, quant=self.quant, dropout=self.dropout
        )


StepNetwork = HeadConfig | LSTMConfig | CRNNConfig
"""Networks that give logits at each step."""
Network = Annotated[
    DenseNetConfig | ResNetConfig | HeadConfig | LSTMConfig | CRNNConfig, Discriminator("architecture")
]
