"""A run's folder: its settings, and what its models are.

RUN/config.json               the settings, with root and events resolved
RUN/MODEL/checkpoints/STEP    the last and the best state of the teacher and each student
RUN/MODEL/log.jsonl           losses and validation figures
RUN/MODEL/logits-SPLIT.npz    logits keyed by clip
RUN/results.json, .png        the table and the curves of the test split
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qkd_jax.config import Config, InputError, from_json, to_json, with_data
from qkd_jax.data.clips import Clip
from qkd_jax.data.source import read_clips
from qkd_jax.models.build import Model, build_model
from qkd_jax.train import checkpoint
from qkd_jax.train.state import TrainState, init_state, make_optimizer

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in `folder`; `config` has its root and events resolved."""

    folder: Path
    config: Config

    @property
    def names(self) -> list[str]:
        """The teacher and the students, in the order they train."""
        return [TEACHER, *self.config.students]

    @property
    def shape(self) -> tuple[int, int]:
        """What the models see: [frames, mels]."""
        return self.config.frames, self.config.features.n_mels

    def model(self, name: str) -> Model:
        """The teacher, or the student `name`."""
        settings = self.config.teacher if name == TEACHER else self.config.students[name]
        return build_model(settings, len(self.config.data.events))

    def new_state(self, name: str, norm: tuple[np.ndarray, np.ndarray]) -> TrainState:
        """The state before the first step, with features normalised by `norm`."""
        optimizer = make_optimizer(self.config.train)
        return init_state(self.model(name), optimizer, self.shape, norm, self.config.train.seed)

    def best_variables(self, name: str) -> Any:
        """The variables of the state that did best on validation; raises InputError if there is none."""
        norm = (np.zeros(self.shape[1], np.float32),) * 2
        shapes = jax.eval_shape(partial(self.new_state, name, norm))
        return checkpoint.best_model(self.folder / name / "checkpoints", shapes)


def open_run(config: Config) -> tuple[Run, list[Clip]]:
    """Begin the run of `config`, or go on with it; also the clips of its source.

    Raises InputError if the folder holds a run of other settings.
    """
    folder = Path(config.runs) / config.name
    if config.data.source == "demo":
        home = _demo_root(folder)
        if config.data.root not in (None, home):
            raise InputError(
                f"data.root: the demo makes its own recordings in {home}, got {config.data.root}; "
                "for recordings of yours: python train.py paper --data.root DIR"
            )
        config = with_data(config, root=home)
    elif config.data.root is not None:
        config = with_data(config, root=str(Path(config.data.root).absolute()))
    clips = read_clips(config.data, config.features)
    if not config.data.events:
        events = sorted(set().union(*(clip.labels for clip in clips)))
        if not events:
            raise InputError(f"{config.data.root}/{config.data.manifest}: expected labels, found none")
        config = with_data(config, events=tuple(events))
    path = folder / "config.json"
    if path.is_file():
        _check_same(load_run(folder).config, config, path)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(config) + "\n")
    return Run(folder, config), clips


def load_run(folder: Path) -> Run:
    """The run in `folder`; raises InputError if it holds none."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a run with a config.json, found none")
    config = from_json(Config, path.read_text(), str(path))
    if config.data.source == "demo":  # its recordings move with the run
        config = with_data(config, root=_demo_root(folder))
    return Run(folder, config)


def _demo_root(folder: Path) -> str:
    return str((folder / "data").absolute())


def _check_same(old: Config, new: Config, path: Path) -> None:
    # The folder is the same, however it is spelled.
    before, after = _fields(old), _fields(dataclasses.replace(new, name=old.name, runs=old.runs))
    for field in before | after:
        if before.get(field) != after.get(field):
            raise InputError(
                f"{path}: this run has {field} = {before.get(field)}, now it is {after.get(field)}; "
                "give another --name, or delete the folder to begin anew"
            )


def _fields(config: Config) -> dict[str, Any]:
    """Each setting under its name on the command line."""
    leaves = jax.tree.leaves_with_path(json.loads(to_json(config)), is_leaf=lambda x: not isinstance(x, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in leaves}
