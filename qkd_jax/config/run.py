"""A run: recordings, a recipe, and models in the order in which they train."""

import dataclasses
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.augment import AugmentConfig
from qkd_jax.config.data import DataConfig, ManifestData
from qkd_jax.config.features import FeatureConfig
from qkd_jax.config.fields import (
    STRICT,
    Count,
    Decay,
    Epochs,
    Name,
    Positive,
    Seed,
    Share,
    Temperature,
    Weight,
)
from qkd_jax.config.networks import (
    CRNNConfig,
    DenseNetConfig,
    HeadConfig,
    LSTMConfig,
    Network,
    QuantConfig,
    ResNetConfig,
)

R = TypeVar("R", bound="RunConfig")
_MAX_BATCH = 16 * 10**9  # bytes of features
TEACHER_FILES = (".npz", ".toml")
"""Suffixes of teachers that are files: logits, and a tagger's description."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EventObjective:
    """Loss of a timed-event model with a mean teacher (Tarvainen & Valpola 2017)."""

    label_weight: Weight = 1.0
    """Weight of the label loss (binary cross-entropy per step and per clip)."""
    consistency_weight: Weight = 2.0
    """Weight of the consistency loss after the ramp-up; 0 disables it."""
    teacher_weight: Weight = 1.0
    """Weight of the soft loss."""
    fusion: Literal["precision", "uniform", "best", "logits"] = "precision"
    """How several teachers are combined: weighted by a softmax over their average precision on validation,
    uniformly, only the best teacher per event, or by the mean of their logits."""
    temperature: Temperature = 1.0
    """Temperature of the teachers' posteriors."""
    update: Literal["student", "mean_step", "ema_ste"] = "student"
    """Network updated by the soft loss: the student; the mean teacher, with optimizer steps of its own
    (TAKD); or the student, with the gradient at the mean teacher's weights."""
    mean_learning_rate: Positive = 0.1
    """Learning rate of the mean teacher's own steps, as a fraction of the student's."""
    embeddings: str | None = None
    """Source of the target embeddings (EEFD): an earlier model, or a tagger's .toml with a layer."""
    embedding_weight: Weight = 1.0
    """Weight of the embedding loss."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """A model of a run: its network and how it is trained."""

    network: Network
    teachers: tuple[str, ...] = ()
    """Teachers (earlier models, taggers .toml, logits .npz)."""
    start: str | None = None
    """Model whose best weights initialize this one: an earlier model of the run, or RUN/MODEL of another."""
    learning_rate: Positive | None = None
    """Peak learning rate of Adam; the recipe's by default."""
    epochs: Epochs | None = None
    """Passes over the training recordings; the recipe's by default."""
    ema_decay: Decay | None = None
    """Decay of the weights' moving average, the saved model; the recipe's by default."""
    objective: EventObjective | None = None
    """Loss settings for timed events."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClipRecipe:
    """Clip classification with labels (eq. 1) and teachers (eq. 2), trained with Adam."""

    task: Literal["clips"] = "clips"
    seed: Seed = 0
    """Seed of initial weights, order and crops."""
    batch_size: Count = 32
    """Clips per update."""
    epochs: Epochs = 12
    """Passes over the training clips; a model may set its own."""
    min_updates: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Least number of updates of a model: with few clips, an epoch is several passes."""
    learning_rate: Positive = 3e-3
    """Peak learning rate of Adam; a model may set its own."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning-rate schedule: constant, or cosine decay to zero."""
    clip_norm: Positive | None = 5.0
    """Largest global norm of a gradient; larger ones are scaled down to it. None disables it."""
    ema_decay: Decay = 0.0
    """Decay of the weights' moving average; 0 disables it, and a model may set its own."""
    patience: Count | None = None
    """Epochs without a new validation best before a model stops; a cosine schedule is then cut short."""
    final: bool = False
    """Train on the validation recordings too, and keep the last state; a head first chooses its penalty
    without them."""
    alpha: Share = 0.5
    """Weight of the soft loss (teachers); 1 - alpha is that of the hard loss (labels)."""
    temperature: Temperature = 2.0
    """Temperature T of the teachers' logits; in Hinton's form also of the student's."""
    class_weight: Weight = 0.0
    """Weight of a loss on the classes of a head's taggers that occur, for LSTM students; not exported."""
    softmax_weight: Weight = 0.0
    """Weight of a softmax cross-entropy over events, for tasks in which each clip has one of several."""
    form: Literal["hinton", "paper"] = "hinton"
    """Soft loss: hinton (temperature on both sides, no w_c) or paper (eq. 2 with its missing sign and σ)."""
    positive_weight: Literal["negatives/positives", "positives/negatives"] | Positive = "negatives/positives"
    """w_c of eq. 1: per event from the training counts, or a constant."""

    def __post_init__(self) -> None:
        if self.final and self.patience is not None:
            raise ValueError(f"patience: expected none with final, got {self.patience}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EventRecipe:
    """Sound event detection: which event happens when, by the recipe of DCASE 2023, task 4A."""

    task: Literal["events"] = "events"
    seed: Seed = 0
    """Seed of initial weights, order, crops and dropout."""
    strong: Count = 12
    """Strongly labelled clips per update; one epoch is one pass over them."""
    weak: Annotated[int, Field(ge=0)] = 12
    """Weakly labelled clips per update."""
    unlabelled: Annotated[int, Field(ge=0)] = 24
    """Unlabelled clips per update."""
    epochs: Epochs = 200
    """Passes over the strongly labelled clips; a model may set its own."""
    learning_rate: Positive = 1e-3
    """Learning rate of Adam after the ramp-up; a model may set its own."""
    ramp: Share = 0.25
    """Fraction of updates for the ramp-up exp(-5 (1 - s/S)²) of learning rate and consistency weight."""
    clip_norm: Positive | None = 5.0
    """Largest global norm of a gradient; larger ones are scaled down to it. None disables it."""
    ema_decay: Decay = 0.999
    """Decay of the mean teacher, the saved model; in update s at most 1 - 1/(s + 1)."""
    patience: Count | None = None
    """Epochs without a new validation best before a model stops."""
    median: Annotated[int, Field(ge=1, lt=10_000)] = 7
    """Median filter length for evaluation, in steps (odd)."""

    def __post_init__(self) -> None:
        if self.median % 2 == 0:
            raise ValueError(f"median: expected an odd number of steps, got {self.median}")

    @property
    def batch_size(self) -> int:
        """Clips per update."""
        return self.strong + self.weak + self.unlabelled


RecipeConfig = Annotated[ClipRecipe | EventRecipe, Discriminator("task")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """A run: models train in the order listed, under `runs`/`name`.

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
    """Feature cache shared by all runs; `runs`/.features by default."""
    distributed: bool = False
    """Train together with other processes; each has its share of every batch (docs/scale.md)."""
    features: FeatureConfig = FeatureConfig()
    data: DataConfig = ManifestData()
    recipe: RecipeConfig = ClipRecipe()
    augment: AugmentConfig = AugmentConfig()
    models: dict[Name, ModelConfig] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames < 1:
            window = f"{self.features.win_length / self.features.sample_rate:g} s"
            got = f"{self.data.clip_seconds:g}"
            raise ValueError(f"data.clip_seconds: expected at least one window ({window}), got {got}")
        clips = self.recipe.batch_size
        if (size := 4 * clips * self.frames * self.features.n_mels) > _MAX_BATCH:
            field = "strong" if self.timed else "batch_size"
            raise ValueError(
                f"recipe.{field}, data.clip_seconds: expected a batch of at most {_MAX_BATCH / 1e9:g} GB, "
                f"got {clips} clips of {self.frames} frames, {size / 1e9:.0f} GB"
            )
        if self.augment.views and self.timed:
            raise ValueError(f"augment.views: expected 0 for timed events, got {self.augment.views}")
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
        """Whether the run detects when events happen."""
        return isinstance(self.recipe, EventRecipe)

    @property
    def final(self) -> bool:
        """Whether models train on the validation recordings too, and nothing is chosen by these."""
        return isinstance(self.recipe, ClipRecipe) and self.recipe.final

    @property
    def heads(self) -> dict[str, HeadConfig]:
        """The networks of those models that are heads."""
        networks = {name: model.network for name, model in self.models.items()}
        return {name: network for name, network in networks.items() if isinstance(network, HeadConfig)}

    @property
    def makes_views(self) -> bool:
        """Whether there are views: if heads are the only teachers, since other logits don't cover them."""
        teachers = {teacher for model in self.models.values() for teacher in model.teachers}
        return self.augment.views > 0 and bool(teachers) and teachers <= self.heads.keys()

    def model(self, name: str) -> ModelConfig:
        """Model `name`, with the recipe's settings where it sets none."""
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
    own: tuple[Any, ...] = (
        (LSTMConfig, CRNNConfig) if run.timed else (DenseNetConfig, ResNetConfig, LSTMConfig)
    )
    kinds = (*own, HeadConfig)
    if isinstance(network, HeadConfig) and (model.teachers or model.start or model.objective):
        raise ValueError(f"{where}: expected no teachers, start or objective for a head, found some")
    if not isinstance(network, kinds):
        names = " or ".join(kind.architecture for kind in kinds)
        raise ValueError(
            f"{where}.network.architecture: expected {names} for recipe.task {run.recipe.task}, "
            f"got {network.architecture}"
        )
    if isinstance(network, LSTMConfig | CRNNConfig) and network.steps(run.frames) < 1:
        raise ValueError(
            f"{where}.network: expected at least one step, got none from {run.frames} frames; "
            "use fewer convolutions or strides"
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
        raise ValueError(f"{where}.start: expected a model with the same parameter shapes, got {start!r}")
    if is_integer(network) and (start is None or (begun is not None and not is_float(begun))):
        raise ValueError(
            f"{where}.start: expected a float model (required by the integer-only scheme), "
            f"got {repr(start) if start else 'none'}"
        )


def _check_teachers(where: str, model: ModelConfig, earlier: dict[str, ModelConfig], run: RunConfig) -> None:
    for teacher in model.teachers:
        if run.timed and teacher.endswith(".toml"):
            raise ValueError(
                f"{where}.teachers: expected earlier models or .npz files for timed events, got {teacher!r}"
            )
        if not is_file(teacher) and teacher not in earlier:
            raise ValueError(
                f"{where}.teachers: expected {_names(earlier)}, or a .toml or .npz file, got {teacher!r}"
            )


def _check_objective(where: str, model: ModelConfig, earlier: dict[str, ModelConfig], run: RunConfig) -> None:
    objective, network = model.objective, model.network
    assert objective is not None
    if not run.timed:
        raise ValueError(f"{where}.objective: expected no objective for recipe.task clips, found one")
    if objective.update != "student" and not model.teachers:
        raise ValueError(f"{where}.objective.update: expected teachers for {objective.update}, found none")
    source = objective.embeddings
    if source is None:
        return
    if not source.endswith(".toml") and source not in earlier:
        raise ValueError(
            f"{where}.objective.embeddings: expected {_names(earlier)}, or a .toml file, got {source!r}"
        )
    guide = earlier[source].network if source in earlier else None
    if not isinstance(network, CRNNConfig) or not isinstance(guide, CRNNConfig | None):
        raise ValueError(
            f"{where}.objective.embeddings: expected CRNNs for student and embeddings, got "
            f"{network.architecture} and {guide.architecture if guide else source}"
        )
    if guide is not None and guide.steps(run.frames) != (steps := network.steps(run.frames)):
        raise ValueError(
            f"{where}.objective.embeddings: expected {steps} steps per clip, got {source!r} with "
            f"{guide.steps(run.frames)}"
        )


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
    quant = getattr(network, "quant", QuantConfig())
    return dataclasses.replace(quant, gradient="identity") == QuantConfig()


def _names(earlier: dict[str, ModelConfig]) -> str:
    return f"an earlier model of the run ({', '.join(earlier) or 'no earlier model exists'})"
