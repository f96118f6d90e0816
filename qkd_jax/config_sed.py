"""Settings of sound event detection: which event, and when (`qkd_jax.config` has the rest)."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.config import (
    _STRICT,
    AugmentConfig,
    Count,
    DataConfig,
    FeatureConfig,
    Name,
    Positive,
    QuantConfig,
    StudentConfig,
)

Pools = tuple[tuple[Count, Count], ...]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CRNNConfig:
    """Convolutions, a GRU, and a reading of each step; the default is DESED's baseline (DCASE 2023, 4A)."""

    trunk: Literal["gated", "se", "separable", "resnet", "densenet"] = "gated"
    """Gated linear units, context gating with SE and tfwSE (Nam & Park 2023), or blocks of these kinds."""
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 64, 128, 128, 128, 128)
    """Channels of each block."""
    pools: Pools = ((2, 2), (2, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2))
    """Frames and bands that the average pool behind each block joins."""
    units: Count = 128
    """Hidden units of the GRU, in each direction."""
    layers: Count = 2
    """Layers of the GRU."""
    bidirectional: bool = True
    """Read from both ends, which takes the whole clip; or as it comes."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of values dropped in training, behind each block, and before and behind the GRU."""
    quant: QuantConfig = QuantConfig()
    """Bit widths, in training and after it; the paper's scheme."""

    def __post_init__(self) -> None:
        if len(self.pools) != len(self.channels):
            raise ValueError(
                f"pools: expected one for each of {len(self.channels)} blocks, got {len(self.pools)}"
            )
        if self.quant.scheme == "integer":
            raise ValueError("quant.scheme: a CRNN has the paper's, got integer")

    @classmethod
    def se(cls, width: int, **fields: Any) -> "CRNNConfig":
        """SE-CRNN of `width` w: channels w, 2w, 4w, 8w four times, and a GRU of 8w."""
        widths = (1, 2, 4, 8, 8, 8, 8)
        return cls(trunk="se", channels=tuple(width * each for each in widths), units=8 * width, **fields)

    @classmethod
    def se_third(cls, **fields: Any) -> "CRNNConfig":
        """SE-CRNN with about a third of the baseline's parameters.

        A reading: Xiao & Das (2024) have an "SE-CRNN-16" of a third, and no width comes to that.
        """
        return cls(trunk="se", channels=(16, 32, 64, 64, 64, 64, 64), units=64, **fields)

    @property
    def span(self) -> tuple[int, int]:
        """Frames that a step joins, and to the next; beyond them convolutions look on either side."""
        hop = 1
        for frames, _ in self.pools:
            hop *= frames
        return hop, hop

    def steps(self, frames: int) -> int:
        """Steps of the GRU over `frames` frames."""
        for joined, _ in self.pools:
            frames //= joined
        return frames

    def fits(self, other: "CRNNConfig") -> bool:
        """Whether both have the same parameters."""
        return self == dataclasses.replace(other, quant=self.quant, dropout=self.dropout)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DetectorConfig:
    """One model of a run, and what it learns from; each has a mean student (Tarvainen & Valpola 2017)."""

    network: CRNNConfig | StudentConfig = CRNNConfig()
    """A CRNN; or the LSTM of the clip-level runs, of whose settings those of training don't count here."""
    start: Name | None = None
    """An earlier model of the run whose best state it begins with; an integer student must have one."""
    learning_rate: Positive = 1e-3
    """Adam's learning rate, once it has risen."""
    epochs: Count | None = None
    """Passes over the strongly labelled clips; train.epochs if none is given."""
    labels: Share = 1.0
    """Weight of the labels' term: binary cross-entropy of steps and of clips."""
    consistency: Share = 2.0
    """Weight of agreement with the mean student, once it has risen; 0 for none."""
    teachers: tuple[str, ...] = ()
    """Earlier models of the run, or what they said of its training clips, in an .npz."""
    fusion: Literal["precision", "uniform", "best", "logits"] = "precision"
    """Teachers weigh by a softmax over their average precision on validation, alike, the best of each event
    alone, or as the mean of their logits."""
    temperature: Positive = 1.0
    """Softness of the teachers' probabilities."""
    teaching: Share = 1.0
    """Weight of the teachers' term."""
    through: Literal["student", "mean_step", "ema_ste"] = "student"
    """Who learns from the teachers: the student; or the mean student, by steps of its own (TAKD), or by a
    gradient that goes to the student."""
    mean_rate: Positive = 0.1
    """Learning rate of the mean student's own steps, as a share."""
    embeddings: str | None = None
    """An earlier model whose convolutions guide this one's (EEFD), or a tagger's .toml that names a layer."""
    guidance: Share = 1.0
    """Weight of the distance to these embeddings."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SedTrainConfig:
    """Optimization on batches of three kinds of clips, each a pure function of (seed, step)."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of initial parameters, order, crops and dropout."""
    strong: Count = 12
    """Clips a step whose onsets and offsets are known; an epoch is a pass over these."""
    weak: Annotated[int, Field(ge=0)] = 12
    """Clips a step of which only labels are known."""
    unlabelled: Annotated[int, Field(ge=0)] = 24
    """Clips a step of which nothing is known."""
    epochs: Count = 200
    """Passes over the strongly labelled clips for each model that has no `epochs` of its own."""
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the steps in which learning rate and consistency rise as exp(-5 (1 - s/S)²)."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay a step of the mean student, which is kept; in step s at most 1 - 1/(s + 1)."""
    clip_norm: Positive = 5.0
    """Largest global norm of a gradient."""
    patience: Count | None = None
    """Stop a model after so many epochs in a row that were not its best on validation."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SedConfig:
    """A run of sound event detection: models in the order in which they train, under `runs`/`name`."""

    name: Name = "sed"
    """Folder of the run within `runs`."""
    runs: str = "runs"
    """Folder of all runs."""
    cache: str | None = None
    """Folder where computed features are kept for all runs; `runs`/.features if none is given."""
    distributed: bool = False
    """For train.py: with other processes, here or elsewhere, each on a part of a batch (docs/scale.md)."""
    features: FeatureConfig = FeatureConfig(n_mels=128, win_length=2048, hop_length=256, n_fft=2048, fmin=0.0)
    data: DataConfig = DataConfig(source="desed")
    models: dict[Name, DetectorConfig] = Field(default_factory=dict)
    augment: AugmentConfig = AugmentConfig()
    train: SedTrainConfig = SedTrainConfig()
    median: Annotated[int, Field(ge=1)] = 7
    """Steps of the median filter before events are measured, an odd number."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"data.clip_seconds: {self.data.clip_seconds:g} s is shorter than one window")
        if self.median % 2 == 0:
            raise ValueError(f"median: expected an odd number of steps, got {self.median}")
        earlier: dict[str, DetectorConfig] = {}
        for name, model in self.models.items():
            if name == "data":
                raise ValueError("models: 'data' is a folder of every run, choose another name")
            if model.network.steps(self.frames) < 1:
                raise ValueError(f"models.{name}.network: nothing is left of {self.frames} frames")
            for field, others, files in (
                ("start", (model.start,), ()),
                ("teachers", model.teachers, (".npz",)),
                ("embeddings", (model.embeddings,), (".toml",)),
            ):
                for other in others:
                    if other is not None and not other.endswith(files) and other not in earlier:
                        raise ValueError(
                            f"models.{name}.{field}: expected an earlier model of the run "
                            f"({', '.join(earlier) or 'there is none'}), got {other!r}"
                        )
            begun = earlier[model.start].network if model.start else None
            if begun is not None and not _fits(model.network, begun):
                raise ValueError(
                    f"models.{name}.start: expected a network of the same parameters, got {model.start!r}"
                )
            if model.through != "student" and not model.teachers:
                raise ValueError(f"models.{name}.through: {model.through} takes teachers, got none")
            integer = model.network.quant.scheme == "integer"
            if integer and (begun is None or begun.quant != QuantConfig()):
                raise ValueError(
                    f"models.{name}.start: expected a float model, from which the integer scheme goes on, "
                    f"got {model.start!r}"
                )
            guide = earlier[model.embeddings].network if model.embeddings in earlier else None
            if model.embeddings is not None and StudentConfig in (type(model.network), type(guide)):
                raise ValueError(f"models.{name}.embeddings: only a CRNN can guide, or be guided")
            steps = model.network.steps(self.frames)
            if guide is not None and guide.steps(self.frames) != steps:
                raise ValueError(
                    f"models.{name}.embeddings: expected one of its {steps} steps, got {model.embeddings!r}"
                )
            earlier[name] = model

    @property
    def networks(self) -> dict[str, CRNNConfig | StudentConfig]:
        """What each model is, in the order in which they train."""
        return {name: model.network for name, model in self.models.items()}

    def start(self, name: str) -> str | None:
        """Whose best state model `name` begins with."""
        return self.models[name].start

    @property
    def frames(self) -> int:
        """Frames of the clips that the models see."""
        return self.features.frames(round(self.data.clip_seconds * self.features.sample_rate))


def _fits(network: CRNNConfig | StudentConfig, other: CRNNConfig | StudentConfig) -> bool:
    if isinstance(network, CRNNConfig):
        return isinstance(other, CRNNConfig) and network.fits(other)
    return isinstance(other, StudentConfig) and network.fits(other)
