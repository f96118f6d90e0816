"""A run: recordings, models in the order in which they train, and the recipe by which they learn."""

import dataclasses
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.data import DataConfig, ManifestData
from qkd_jax.config.features import FeatureConfig
from qkd_jax.config.fields import STRICT, Count, Decay, Name, Positive, Seed, Share, Weight
from qkd_jax.config.networks import CRNNConfig, DenseNetConfig, LSTMConfig, Network, QuantConfig, ResNetConfig

R = TypeVar("R", bound="RunConfig")
TEACHER_FILES = (".npz", ".toml")
"""Suffixes of teachers that are files: logits, and a tagger's description."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EventObjective:
    """What a model of timed events learns from; each has a mean teacher (Tarvainen & Valpola 2017)."""

    label_weight: Weight = 1.0
    """Weight of the labels: binary cross-entropy of steps and of clips."""
    consistency_weight: Weight = 2.0
    """Weight of agreement with the mean teacher, once it has risen; 0 for none."""
    teacher_weight: Weight = 1.0
    """Weight of the teachers' probabilities."""
    fusion: Literal["precision", "uniform", "best", "logits"] = "precision"
    """How several teachers are combined: weighted by a softmax over their average precision on validation,
    uniformly, the best for each event alone, or by the mean of their logits."""
    temperature: Positive = 1.0
    """Softness of the teachers' probabilities."""
    update: Literal["student", "mean_step", "ema_ste"] = "student"
    """What the teachers update: the student; the mean teacher, by steps of its own (TAKD); or the student,
    by the gradient at the mean teacher."""
    mean_learning_rate: Positive = 0.1
    """Learning rate of the mean teacher's own steps, as a share of the model's."""
    embeddings: str | None = None
    """An earlier model whose convolutions guide this one's (EEFD), or a tagger's .toml that names a layer."""
    embedding_weight: Weight = 1.0
    """Weight of the distance to these embeddings."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """One model of a run: its network, and how it learns."""

    network: Network
    teachers: tuple[str, ...] = ()
    """What it learns from beside the labels: earlier models of the run, taggers (.toml), logits (.npz)."""
    start: str | None = None
    """The model whose best state it begins with: an earlier model of the run, or RUN/MODEL of another run."""
    learning_rate: Positive | None = None
    """Adam's learning rate, at its highest; the recipe's by default."""
    epochs: Count | None = None
    """Passes over the training recordings; the recipe's by default."""
    ema_decay: Decay | None = None
    """Decay per update of the weights' moving average, which is what is kept; the recipe's by default."""
    objective: EventObjective | None = None
    """For timed events, what it learns from."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClipRecipe:
    """Learn which events a clip holds: labels (eq. 1) and teachers (eq. 2), by Adam.

    The batches are a pure function of seed and update.
    """

    task: Literal["clips"] = "clips"
    seed: Seed = 0
    """Seed of initial weights, order and crops."""
    batch_size: Count = 32
    """Clips per update."""
    epochs: Count = 12
    """Passes over the training clips, for models without epochs of their own."""
    learning_rate: Positive = 3e-3
    """Adam's learning rate at the start, for models without one of their own."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """The learning rate stays, or falls to zero along half a cosine over all epochs."""
    clip_norm: Positive = 5.0
    """Largest global norm of a gradient; larger ones are scaled down to it."""
    ema_decay: Decay = 0.0
    """Decay of the weights' moving average, for models without one of their own; 0 for none."""
    patience: Count | None = None
    """Stop a model after this many epochs in a row without a new best on validation; a falling learning rate
    has then not fallen to the end."""
    alpha: Share = 0.5
    """Weight of the teachers' term (soft loss); 1 - alpha is the labels' (hard loss)."""
    temperature: Positive = 2.0
    """Softness T of the teachers' logits, and in Hinton's form of the student's."""
    form: Literal["hinton", "paper"] = "hinton"
    """Both sides tempered and the soft loss unweighted (Hinton), or eq. 2 to the letter."""
    positive_weight: Literal["negatives/positives", "positives/negatives"] | Positive = "negatives/positives"
    """w_c of eq. 1, for each event from the training set's counts, or one number."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EventRecipe:
    """Learn which event happens when, from timed, weakly labelled and unlabelled clips (DCASE 2023, task 4A).

    The batches are a pure function of seed and update.
    """

    task: Literal["events"] = "events"
    seed: Seed = 0
    """Seed of initial weights, order, crops and dropout."""
    strong: Count = 12
    """Clips per update whose events are timed; an epoch is one pass over these."""
    weak: Annotated[int, Field(ge=0)] = 12
    """Clips per update with labels but no times."""
    unlabelled: Annotated[int, Field(ge=0)] = 24
    """Clips per update without labels."""
    epochs: Count = 200
    """Passes over the timed clips, for models without epochs of their own."""
    learning_rate: Positive = 1e-3
    """Adam's learning rate once it has risen, for models without one of their own."""
    ramp: Share = 0.25
    """Share of the updates in which learning rate and consistency rise as exp(-5 (1 - s/S)²)."""
    clip_norm: Positive = 5.0
    """Largest global norm of a gradient; larger ones are scaled down to it."""
    ema_decay: Decay = 0.999
    """Decay per update of the mean teacher, which is what is kept; in update s at most 1 - 1/(s + 1)."""
    patience: Count | None = None
    """Stop a model after this many epochs in a row without a new best on validation."""
    median: Count = 7
    """Steps of the median filter before events are measured, an odd number."""

    def __post_init__(self) -> None:
        if self.median % 2 == 0:
            raise ValueError(f"median: expected an odd number of steps, got {self.median}")

    @property
    def batch_size(self) -> int:
        """Clips per update."""
        return self.strong + self.weak + self.unlabelled


RecipeConfig = Annotated[ClipRecipe | EventRecipe, Discriminator("task")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """What happens to the features of a training batch; nothing by default, as in the paper."""

    time_shift: Share = 0.0
    """Largest shift of a clip in time, around its end, as a share of its length."""
    time_masks: Annotated[int, Field(ge=0)] = 0
    """Ranges of frames to blank (SpecAugment, Park et al. 2019)."""
    time_mask_frames: Count = 50
    """Frames of the longest such range."""
    mel_masks: Annotated[int, Field(ge=0)] = 0
    """Ranges of mel bands to blank."""
    mel_mask_bands: Count = 8
    """Bands of the widest such range."""
    mixup: Weight = 0.0
    """Mix each clip with another by a share from Beta(mixup, mixup) (Zhang et al. 2018); 0 for off."""
    mixup_share: Share = 1.0
    """Probability that a batch is mixed at all."""

    @property
    def on(self) -> bool:
        """Whether anything happens."""
        return bool(self.time_shift or self.time_masks or self.mel_masks or self.mixup)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """A run: models train in the order in which they stand, under `runs`/`name`.

    >>> models = {"teacher": ModelConfig(network=DenseNetConfig())}
    >>> models["student"] = ModelConfig(network=LSTMConfig(), teachers=("teacher",))
    >>> RunConfig(models=models).frames
    998
    """

    name: Name = "run"
    """Folder of the run within `runs`."""
    runs: str = "runs"
    """Folder of all runs."""
    cache: str | None = None
    """Folder where computed features are kept for all runs; `runs`/.features by default."""
    distributed: bool = False
    """Train together with other processes, each on a part of every batch (docs/scale.md)."""
    features: FeatureConfig = FeatureConfig()
    data: DataConfig = ManifestData()
    recipe: RecipeConfig = ClipRecipe()
    augment: AugmentConfig = AugmentConfig()
    models: dict[Name, ModelConfig] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"data.clip_seconds: {self.data.clip_seconds:g} s is shorter than one window")
        earlier: dict[str, ModelConfig] = {}
        for name, model in self.models.items():
            where = f"models.{name}"
            _check_network(where, model, self)
            _check_start(where, model, earlier)
            _check_teachers(where, model, earlier, self)
            if model.objective is not None:
                _check_objective(where, model, earlier, self)
            earlier[name] = model

    @property
    def frames(self) -> int:
        """Frames of the models' input."""
        return self.features.frames(round(self.data.clip_seconds * self.features.sample_rate))

    @property
    def timed(self) -> bool:
        """Whether the run learns when events happen."""
        return isinstance(self.recipe, EventRecipe)

    def model(self, name: str) -> ModelConfig:
        """Model `name`, with the recipe's settings where it has none of its own."""
        model, recipe = self.models[name], self.recipe
        filled = {
            field: getattr(recipe, field)
            for field in ("learning_rate", "epochs", "ema_decay")
            if getattr(model, field) is None
        }
        if self.timed and model.objective is None:
            filled["objective"] = EventObjective()
        return dataclasses.replace(model, **filled)


def with_data(config: R, **fields: Any) -> R:
    """`config` with some of its `data` settings changed."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))


def is_file(teacher: str) -> bool:
    """Whether a teacher is a file, rather than a model of the run.

    >>> is_file("yamnet.toml"), is_file("teacher")
    (True, False)
    """
    return teacher.endswith(TEACHER_FILES)


def _check_network(where: str, model: ModelConfig, run: RunConfig) -> None:
    network = model.network
    kinds = (LSTMConfig, CRNNConfig) if run.timed else (DenseNetConfig, ResNetConfig, LSTMConfig)
    if not isinstance(network, kinds):
        names = " or ".join(kind.architecture for kind in kinds)
        raise ValueError(
            f"{where}.network.architecture: expected {names} to learn {run.recipe.task}, "
            f"got {network.architecture}"
        )
    if isinstance(network, LSTMConfig | CRNNConfig) and network.steps(run.frames) < 1:
        raise ValueError(
            f"{where}.network: {run.frames} frames leave no step; expected fewer convolutions or strides"
        )


def _check_start(where: str, model: ModelConfig, earlier: dict[str, ModelConfig]) -> None:
    start, network = model.start, model.network
    of_run = start is not None and "/" not in start
    begun = earlier[start].network if start in earlier else None
    if of_run and begun is None:
        raise ValueError(
            f"{where}.start: expected {_names(earlier)}, or RUN/MODEL of another run, got {start!r}"
        )
    if begun is not None and not same_parameters(network, begun):
        raise ValueError(f"{where}.start: expected a model with the same parameters, got {start!r}")
    if is_integer(network) and (start is None or (begun is not None and not is_float(begun))):
        raise ValueError(
            f"{where}.start: expected a float model, from which the integer-only scheme starts, got {start!r}"
        )


def _check_teachers(where: str, model: ModelConfig, earlier: dict[str, ModelConfig], run: RunConfig) -> None:
    for teacher in model.teachers:
        if run.timed and teacher.endswith(".toml"):
            raise ValueError(
                f"{where}.teachers: expected earlier models or .npz files for timed events, got {teacher!r}"
            )
        if not is_file(teacher) and teacher not in earlier:
            raise ValueError(
                f"{where}.teachers: expected {_names(earlier)}, a .toml or an .npz, got {teacher!r}"
            )
        if run.augment.on and not run.timed and is_file(teacher):
            raise ValueError(
                f"{where}.teachers: expected models of the run, since with augmentation a teacher must see "
                f"the augmented clip, got {teacher!r}"
            )


def _check_objective(where: str, model: ModelConfig, earlier: dict[str, ModelConfig], run: RunConfig) -> None:
    objective, network = model.objective, model.network
    assert objective is not None
    if not run.timed:
        raise ValueError(f"{where}.objective: expected none for recipe.task clips, got one of timed events")
    if objective.update != "student" and not model.teachers:
        raise ValueError(f"{where}.objective.update: {objective.update} needs teachers, got none")
    source = objective.embeddings
    if source is None:
        return
    if not source.endswith(".toml") and source not in earlier:
        raise ValueError(
            f"{where}.objective.embeddings: expected {_names(earlier)}, or a .toml, got {source!r}"
        )
    guide = earlier[source].network if source in earlier else None
    if not isinstance(network, CRNNConfig) or not isinstance(guide, CRNNConfig | None):
        raise ValueError(f"{where}.objective.embeddings: expected a CRNN, and a CRNN that guides it")
    if guide is not None and guide.steps(run.frames) != (steps := network.steps(run.frames)):
        raise ValueError(f"{where}.objective.embeddings: expected a model of {steps} steps, got {source!r}")


def same_parameters(network: Any, other: Any) -> bool:
    """Whether two networks have the same parameters, so that one can start from the other."""
    if isinstance(network, LSTMConfig | CRNNConfig):
        return network.has_parameters_of(other)
    return bool(network == other)


def is_integer(network: Any) -> bool:
    """Whether `network` computes in the integer-only scheme."""
    return isinstance(network, LSTMConfig) and network.quant.scheme == "integer"


def is_float(network: Any) -> bool:
    """Whether nothing in `network` is quantized."""
    return getattr(network, "quant", QuantConfig()) == QuantConfig()


def _names(earlier: dict[str, ModelConfig]) -> str:
    return f"an earlier model of the run ({', '.join(earlier) or 'there is none'})"
