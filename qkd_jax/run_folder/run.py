"""A run: its folder, its settings, and its models and their states.

RUN/config.json                    the settings, with paths and events resolved
RUN/clips.jsonl                    the recordings or their parts, with labels and split
RUN/sizes.npy                      the bytes of each recording, to recognize it where it has moved
RUN/left-out.txt                   recordings that could not be used, and why
RUN/norm.npz                       mean and standard deviation of the training features
RUN/teachers/FILE.npy              logits of teachers from files, for the training clips
RUN/models/NAME/checkpoints/STEP   the last two states and the best
RUN/models/NAME/damaged-STEP       a checkpoint that could not be read, set aside
RUN/models/NAME/log.jsonl          losses and validation figures, and the same for TensorBoard
RUN/models/NAME/teaching.npz       logits that other models learn from
RUN/models/NAME/embeddings.npz     embeddings that guide this model
RUN/models/NAME/classes.npz        posteriors of the classes of a head's taggers
RUN/models/NAME/inputs.npz         what a head reads of its taggers' outputs
RUN/models/NAME/logits-SPLIT.npz   logits keyed by clip
RUN/NAME.safetensors               an exported detector (.onnx, .tflite, .h)
RUN/results.json, results.png      figures and curves of the test split
RUN/report.html                    everything to look at

Paths in config.json (of recordings, features, other runs and teachers) may lead anywhere: a command on a
folder from somebody else reads and writes where they point.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from qkd_jax.config import (
    ClipRecipe,
    EventObjective,
    HeadConfig,
    LSTMConfig,
    ModelConfig,
    RunConfig,
    is_float,
    is_integer,
    same_parameters,
)
from qkd_jax.data.arrays import read_npz
from qkd_jax.data.clips import Clip, read_clip_list
from qkd_jax.data.features import mean_and_std
from qkd_jax.errors import InputError
from qkd_jax.models.build import Model, build_model
from qkd_jax.run_folder import checkpoints
from qkd_jax.run_folder.state import TrainState, init_state, make_optimizer
from qkd_jax.system.devices import lacking
from qkd_jax.system.files import whole_file

_MAX_EMBEDDING = 1 << 16
_CLASSES = "posteriors of taggers' classes (`qkd-jax train` computes them again)"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in `folder`; `config` has its paths and events resolved."""

    folder: Path
    config: RunConfig

    @property
    def names(self) -> list[str]:
        """Its models, in the order in which they train."""
        return list(self.config.models)

    @property
    def clips(self) -> list[Clip]:
        """The recordings that the run began with."""
        data = self.config.data
        unlabelled = Path(data.unlabelled) if data.unlabelled else None
        return read_clip_list(self.folder / "clips.jsonl", Path(data.root or ""), unlabelled)

    @property
    def cache(self) -> Path:
        """The folder of cached features."""
        return Path(self.config.cache or self.folder.parent / ".features")

    @property
    def results(self) -> dict[str, Any]:
        """The figures of the test split; raises InputError if the run isn't finished."""
        path = self.folder / "results.json"
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected the figures of a finished run: {error}") from None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the models' input: [frames, mels]."""
        return self.config.frames, self.config.features.n_mels

    def model_folder(self, name: str) -> Path:
        """The folder of model `name`."""
        return self.folder / "models" / name

    def teacher_file(self, file: str) -> Path:
        """Where the logits of a teacher from `file` are kept."""
        digest = hashlib.sha256(file.encode()).hexdigest()[:8]
        return self.folder / "teachers" / f"{Path(file).stem}-{digest}.npy"

    def norm(self, features: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training `features`, computed once."""
        path = self.folder / "norm.npz"
        if lacking(path):
            mean, std = mean_and_std(features)
            with whole_file(path) as file:
                np.savez(file, mean=mean, std=std)
        what = "mean and standard deviation of the training features (delete the file to compute them again)"
        mean, std = read_npz(path, what, mean=("f", 1), std=("f", 1))
        if not (mean.shape == std.shape == self.shape[1:] and np.isfinite(mean).all() and (std > 0).all()):
            raise InputError(f"{path}: expected {what}: found other numbers")
        return mean, std

    def model(self, name: str) -> Model:
        """The Flax module of model `name` in training."""
        network, events = self.config.models[name].network, len(self.config.data.events)
        if classes := self.classes(name):
            return build_model(network, events, classes=classes)
        if self.objective(name).embeddings is None:
            return build_model(network, events)
        path = self.embeddings_file(name)
        (size,) = read_npz(path, "embeddings", size=("iu", 0))
        if not 1 <= size <= _MAX_EMBEDDING:
            raise InputError(f"{path}: expected embeddings of 1 to {_MAX_EMBEDDING} dimensions, found {size}")
        return build_model(network, events, embedding=int(size))

    def objective(self, name: str) -> EventObjective:
        """For timed events, the objective of model `name`; for clips, the default one, without embeddings."""
        return self.config.models[name].objective or EventObjective()

    def classes(self, name: str) -> int:
        """The number of taggers' classes that model `name` also learns, of the heads that teach it."""
        total = 0
        for head in self.heads_of_classes(name):
            path = self.classes_file(head)
            (size,) = read_npz(path, _CLASSES, size=("iu", 0))
            if not 0 <= size <= _MAX_EMBEDDING:
                raise InputError(f"{path}: expected at most {_MAX_EMBEDDING} classes, found {size}")
            total += int(size)
        return total

    def heads_of_classes(self, name: str) -> list[str]:
        """The heads whose taggers' classes model `name` also learns."""
        config, model = self.config, self.config.models[name]
        if not isinstance(config.recipe, ClipRecipe) or not isinstance(model.network, LSTMConfig):
            return []
        return [each for each in model.teachers if each in config.heads and config.recipe.class_weight > 0]

    def classes_file(self, head: str) -> Path:
        """Where the posteriors of the classes of a head's taggers are kept."""
        return self.model_folder(head) / "classes.npz"

    def inputs_file(self, name: str) -> Path:
        """Where the projections of a head's inputs are kept."""
        return self.model_folder(name) / "inputs.npz"

    def shape_of(self, name: str) -> tuple[int, int]:
        """Shape of model `name`'s input: [frames, mels], or for a head [windows, size]."""
        if not isinstance(self.config.models[name].network, HeadConfig):
            return self.shape
        path = self.inputs_file(name)
        (size,) = read_npz(path, "projections of taggers' outputs", size=("iu", 0))
        if not 0 <= size <= _MAX_EMBEDDING:
            raise InputError(f"{path}: expected at most {_MAX_EMBEDDING} inputs, found {size}")
        return 1, len(self.config.data.events) + int(size)

    def embeddings_file(self, name: str) -> Path:
        """Where the embeddings that guide model `name` are kept."""
        return self.model_folder(name) / "embeddings.npz"

    def new_state(self, name: str, norm: tuple[np.ndarray, np.ndarray] | None = None) -> TrainState:
        """The state before the first update, with features normalized by `norm`, which heads don't need.

        Raises InputError if the network leaves nothing of the features.
        """
        config = self.config.model(name)
        if isinstance(config.network, HeadConfig):
            return init_state(self.model(name), optax.identity(), self.shape_of(name), None, 0)
        # The initial state of Adam depends neither on its learning rate nor on the number of updates.
        optimizer = make_optimizer(self.config.recipe, 1.0, 1)
        average = self.config.timed or bool(config.ema_decay)
        model = self.model(name)
        try:
            state = init_state(model, optimizer, self.shape, norm, self.config.recipe.seed, average=average)
        except ValueError as error:
            raise InputError(f"models.{name}.network.{error}") from None
        if self.objective(name).update != "mean_step":
            return state
        # The mean teacher's own steps (TAKD) have a separate optimizer state.
        mean = optimizer.init(state.average["params"])
        return dataclasses.replace(state, opt_state={"student": state.opt_state, "mean": mean})

    def best_variables(self, name: str) -> Any:
        """The variables of the state that was best on validation; raises InputError if there is none."""
        norm = (np.zeros(self.shape[1], np.float32),) * 2
        shapes = jax.eval_shape(partial(self.new_state, name, norm))
        return checkpoints.best_model(self.model_folder(name) / "checkpoints", shapes)

    def check_model(self, name: str) -> None:
        """Raise InputError if the run has no model `name`."""
        if name not in self.config.models:
            raise InputError(
                f"{self.folder}: expected a model of the run ({', '.join(self.names)}), got {name!r}"
            )


def check_start(config: RunConfig, name: str, other: RunConfig, start: str) -> None:
    """Raise InputError unless model `name` can start from model `start` of the run `other`."""
    model: ModelConfig = config.models[name]
    found = other.models.get(Path(start).name)
    if found is None or not same_parameters(model.network, found.network):
        raise InputError(
            f"--models.{name}.start: expected a model with the same parameter shapes, got {start}"
        )
    for field, value in _inputs(config).items():
        if value != (theirs := _inputs(other)[field]):
            raise InputError(
                f"--models.{name}.start: expected a model with {field} = {value}, got {start}, {theirs}"
            )
    if is_integer(model.network) and not is_float(found.network):
        raise InputError(
            f"--models.{name}.start: expected a float model (required by the integer-only scheme), "
            f"got {start}, which is quantized"
        )


def _inputs(config: RunConfig) -> dict[str, Any]:
    return {
        "features.n_mels": config.features.n_mels,
        "data.events": config.data.events,
        "frames": config.frames,
    }
