"""A run's folder: its settings, its recordings, and what its models are.

RUN/config.json               the settings, with paths and events resolved
RUN/clips.jsonl               the recordings, with labels and split
RUN/left-out.txt              those that could not be used, and why
RUN/norm.npz                  mean and standard deviation of the training features
RUN/foreign.npy               what foreign teachers say of the training clips
RUN/MODEL/checkpoints/STEP    the last two and the best state of the teacher and each student
RUN/MODEL/damaged-STEP        one that could not be read, set aside
RUN/MODEL/log.jsonl           losses and validation figures, and the same for TensorBoard
RUN/MODEL/logits-SPLIT.npz    logits keyed by clip
RUN/teacher/teaching.npz      those that the students learn from
RUN/results.json, .png        the figures and the curves of the test split
RUN/report.html               all of it to look at

Paths in config.json, of recordings, of features, of other runs and teachers, may lead anywhere: who runs a
command on a folder from somebody else reads and writes where it says.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from filelock import FileLock, Timeout

from qkd_jax.config import TRAINED, ModelConfig, QuantConfig, RunConfig, from_json, to_json, with_data
from qkd_jax.data.arrays import read_npz
from qkd_jax.data.clip_list import usable_clips
from qkd_jax.data.clips import SPLITS, Clip, read_clip_list, summary, with_splits, write_clips
from qkd_jax.data.dataset import check_split
from qkd_jax.data.features import mean_and_std
from qkd_jax.errors import InputError
from qkd_jax.models.build import Model, build_model
from qkd_jax.run_folder import checkpoints as checkpoint
from qkd_jax.run_folder.state import TrainState, init_state, make_optimizer
from qkd_jax.system.devices import any_process, is_first, lacking, wait_for_all
from qkd_jax.system.files import whole_file
from qkd_jax.training.sed_step import sed_optimizer, with_mean_steps

TEACHER = "teacher"
_WIDEST = 1 << 16
C = TypeVar("C", bound=RunConfig | RunConfig)


@dataclasses.dataclass(frozen=True)
class Run(Generic[C]):
    """A run in `folder`; `config` has its paths and events resolved."""

    folder: Path
    config: C

    @property
    def names(self) -> list[str]:
        """Its models, in the order in which they train."""
        return list(self.config.networks)

    @property
    def clips(self) -> list[Clip]:
        """The recordings that the run began with."""
        return read_clip_list(self.folder / "clips.jsonl", Path(self.config.data.root or ""))

    @property
    def cache(self) -> Path:
        """Where features are kept."""
        return Path(self.config.cache or self.folder.parent / ".features")

    def norm(self, features: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training `features`, computed once."""
        path = self.folder / "norm.npz"
        if lacking(path):
            mean, std = mean_and_std(features)
            with whole_file(path) as file:
                np.savez(file, mean=mean, std=std)
        what = "mean and deviation of the training features, made anew if it is deleted"
        mean, std = read_npz(path, what, mean=("f", 1), std=("f", 1))
        if (
            mean.shape != std.shape
            or mean.shape != self.shape[1:]
            or not (np.isfinite(mean) & (std > 0)).all()
        ):
            raise InputError(f"{path}: expected {what}: found other numbers")
        return mean, std

    @property
    def shape(self) -> tuple[int, int]:
        """What the models see: [frames, mels]."""
        return self.config.frames, self.config.features.n_mels

    def model(self, name: str) -> Model:
        """The model `name`, while it trains."""
        network, events = self.config.networks[name], len(self.config.data.events)
        if isinstance(self.config, RunConfig) and self.config.models[name].embeddings is not None:
            path = self.embeddings(name)
            (size,) = read_npz(path, "embeddings", size=("iu", 0))
            if not 1 <= size <= _WIDEST:
                raise InputError(f"{path}: expected embeddings of 1 to {_WIDEST} dimensions, found {size}")
            return build_model(network, events, embedding=int(size))
        return build_model(network, events)

    def embeddings(self, name: str) -> Path:
        """Where the embeddings are kept that guide model `name`."""
        return self.folder / name / "embeddings.npz"

    def new_state(self, name: str, norm: tuple[np.ndarray, np.ndarray]) -> TrainState:
        """The state before the first step, with features normalised by `norm`."""
        # An optimizer starts alike for any rate and steps.
        model, shape, seed = self.model(name), self.shape, self.config.train.seed
        if isinstance(self.config, RunConfig):
            settings = self.config.models[name]
            optimizer = sed_optimizer(settings, self.config.train, 1)
            state = init_state(model, optimizer, shape, norm, seed, average=True)
            return with_mean_steps(state, settings, optimizer)
        optimizer = make_optimizer(self.config.train, 1.0, 1)
        average = name != TEACHER and self.config.students[name].ema_decay > 0
        return init_state(model, optimizer, shape, norm, seed, average=average)

    def start(self, name: str) -> "tuple[Run, str] | None":
        """The run and the model whose best state model `name` is to begin with; raises InputError.

        None if it begins anew, or has begun.
        """
        start = self.config.start(name)
        # Of a checkpoint that is only half-written nothing is gone on with.
        begun = (path.name.isdigit() for path in (self.folder / name / "checkpoints").glob("*"))
        if start is None or any(begun):
            return None
        if "/" not in start:
            return self, start
        student: Any = self.config.networks[name]
        folder, other = Path(start).parent, Path(start).name
        run = load_run(folder)
        found, inputs = run.config.students.get(other), attrgetter("features.n_mels", "data.events", "frames")
        if found is None or not student.fits(found) or inputs(run.config) != inputs(self.config):
            raise InputError(
                f"students.{name}.start: expected a student with its convolutions, time_strides, layers, units, "
                f"pooling, bands, frames and events, got {start}"
            )
        if student.quant.scheme == "integer" and found.quant != QuantConfig():
            raise InputError(
                f"students.{name}.start: expected a float student, from which the integer scheme goes on, "
                f"got {start}, quantized"
            )
        return run, other

    def best_variables(self, name: str) -> Any:
        """The variables of the state that did best on validation; raises InputError if there is none."""
        norm = (np.zeros(self.shape[1], np.float32),) * 2
        shapes = jax.eval_shape(partial(self.new_state, name, norm))
        return checkpoint.best_model(self.folder / name / "checkpoints", shapes)


@contextlib.contextmanager
def open_run(config: C) -> Iterator[Run[C]]:
    """Begin the run of `config`, or go on with it; nobody else can until the block ends.

    Settings and recordings bind from the first checkpoint on.  Raises InputError if the folder
    holds a run of other settings, if another process is at it, or if the recordings won't do.
    """
    folder = Path(config.runs) / config.name
    config = _resolved(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    with contextlib.suppress(Timeout):
        if is_first():
            lock.acquire(timeout=0)
    if any_process(is_first() and not lock.is_locked):
        raise InputError(f"{folder}: another process trains this run; give another --name")
    try:
        begun = any_process(any(folder.glob("*/checkpoints/*")))
        if begun:
            before = load_run(folder).config
            if not config.data.events:
                config = with_data(config, events=before.data.events)
            _check_same(before, config, folder / "config.json")
            yield Run(folder, config)
        else:
            yield _begin(Run(folder, config))
    finally:
        lock.release()


def _begin(run: Run) -> Run:
    clips, bad = usable_clips(run.config, run.cache)
    events = run.config.data.events or tuple(sorted(set().union(*(clip.labels for clip in clips))))
    if not events:
        raise InputError(f"{run.config.data.root}: expected recordings with labels, found none")
    config = with_data(run.config, events=events)
    clips = with_splits(clips, events)
    for split in SPLITS:
        check_split(config.data, clips, split)
    print(summary(clips, events), flush=True)
    # What an earlier beginning left.
    for name in ("left-out.txt", "norm.npz", "foreign.npy"):
        (run.folder / name).unlink(missing_ok=True)
    for path in run.folder.glob("*/embeddings.npz"):
        path.unlink(missing_ok=True)
    if bad:
        with whole_file(run.folder / "left-out.txt", "w") as file:
            file.writelines(f"{reason}\n" for reason in bad)
    write_clips(run.folder / "clips.jsonl", clips)
    with whole_file(run.folder / "config.json", "w") as file:
        file.write(to_json(config) + "\n")
    wait_for_all(run.folder)
    return Run(run.folder, config)


def load_run(folder: Path) -> Run:
    """The run in `folder`, of clips or of sound events; raises InputError if it holds none."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a run with a config.json, found none")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a run's settings: {error}") from None
    of_sound_events = re.search('^  "models"', text, re.MULTILINE)
    config: Any = from_json(RunConfig if of_sound_events else RunConfig, text, str(path))
    if config.data.source == "demo":  # its recordings move with the run
        config = with_data(config, root=_demo_root(folder))
    return Run(folder, config)


def _resolved(config: C, folder: Path) -> C:
    """`config` with absolute paths, so that the run goes on from wherever it is called."""
    root = config.data.root
    if config.data.source == "demo":
        home = _demo_root(folder)
        if root not in (None, home):
            raise InputError(
                f"data.root: the demo makes its own recordings in {home}, got {root}; "
                "for recordings of yours: python train.py paper --data.root DIR"
            )
        root = home
    elif root is not None:
        root = str(Path(root).absolute())
    cache = config.cache and str(Path(config.cache).absolute())
    config = with_data(dataclasses.replace(config, cache=cache), root=root)
    if isinstance(config, RunConfig):
        return dataclasses.replace(config, models={k: _with_files(v) for k, v in config.models.items()})
    teachers = tuple(
        name if name == TRAINED else str(Path(name).absolute()) for name in config.distill.teachers
    )
    distill = dataclasses.replace(config.distill, teachers=teachers)
    students = {
        name: dataclasses.replace(student, start=str(Path(student.start).absolute()))
        if student.start and "/" in student.start
        else student
        for name, student in config.students.items()
    }
    return dataclasses.replace(config, distill=distill, students=students)


def _with_files(model: ModelConfig) -> ModelConfig:
    """`model` with the absolute paths of the files that it names."""

    def absolute(name: str | None) -> Any:
        return str(Path(name).absolute()) if name and name.endswith((".npz", ".toml")) else name

    return dataclasses.replace(
        model, teachers=tuple(map(absolute, model.teachers)), embeddings=absolute(model.embeddings)
    )


def _demo_root(folder: Path) -> str:
    return str((folder / "data").absolute())


def _check_same(old: C, new: C, path: Path) -> None:
    # The folder is the same, however it is spelled, and so are features and steps, wherever they are made.
    same = {key: getattr(old, key) for key in ("name", "runs", "cache", "distributed")}
    new = dataclasses.replace(new, **same)
    before, after = _fields(old), _fields(new)
    for field in before | after:
        if before.get(field) != after.get(field):
            raise InputError(
                f"{path}: this run has {field} = {before.get(field)}, now it is {after.get(field)}; "
                "give another --name, or delete the folder to begin anew"
            )


def _fields(config: RunConfig | RunConfig) -> dict[str, Any]:
    """Each setting under its name on the command line."""
    leaves = jax.tree.leaves_with_path(json.loads(to_json(config)), is_leaf=lambda x: not isinstance(x, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in leaves}
