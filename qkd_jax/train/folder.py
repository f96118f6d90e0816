"""A run's folder: its settings, its recordings, and what its models are.

RUN/config.json               the settings, with paths and events resolved
RUN/clips.jsonl               the recordings, with labels and split
RUN/left-out.txt              those that could not be used, and why
RUN/norm.npz                  mean and standard deviation of the training features
RUN/foreign.npy               what foreign teachers say of the training clips
RUN/MODEL/checkpoints/STEP    the last and the best state of the teacher and each student
RUN/MODEL/log.jsonl           losses and validation figures, and the same for TensorBoard
RUN/MODEL/logits-SPLIT.npz    logits keyed by clip
RUN/teacher/teaching.npz      those that the students learn from
RUN/results.json, .png        the figures and the curves of the test split
RUN/report.html               all of it to look at
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout

from qkd_jax.config import TRAINED, Config, InputError, QuantConfig, from_json, to_json, with_data
from qkd_jax.data.clips import SPLITS, Clip, read_clip_list, summary, with_splits, write_clips
from qkd_jax.data.dataset import check_split
from qkd_jax.data.source import usable_clips
from qkd_jax.files import whole_file
from qkd_jax.models.build import Model, build_model
from qkd_jax.train import checkpoint
from qkd_jax.train.state import TrainState, init_state, make_optimizer

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in `folder`; `config` has its paths and events resolved."""

    folder: Path
    config: Config

    @property
    def names(self) -> list[str]:
        """The teacher, if the run has its own, and the students, in the order they train."""
        own = [TEACHER] if TRAINED in self.config.distill.teachers else []
        return [*own, *self.config.students]

    @property
    def clips(self) -> list[Clip]:
        """The recordings that the run began with."""
        return read_clip_list(self.folder / "clips.jsonl", Path(self.config.data.root or ""))

    @property
    def cache(self) -> Path:
        """Where features are kept."""
        return Path(self.config.cache or self.folder.parent / ".features")

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
        optimizer = make_optimizer(self.config.train, 1.0, 1)  # it starts alike for any rate and steps
        average = name != TEACHER and self.config.students[name].ema_decay > 0
        return init_state(
            self.model(name), optimizer, self.shape, norm, self.config.train.seed, average=average
        )

    def start(self, name: str) -> "tuple[Run, str] | None":
        """The run and the student whose best state student `name` is to begin with; raises InputError.

        None if it begins anew, or has begun.
        """
        student = self.config.students[name]
        if student.start is None or any((self.folder / name / "checkpoints").glob("*")):
            return None
        if "/" not in student.start:
            return self, student.start
        folder, other = Path(student.start).parent, Path(student.start).name
        run = load_run(folder)
        found, inputs = run.config.students.get(other), attrgetter("features.n_mels", "data.events", "frames")
        if found is None or not student.fits(found) or inputs(run.config) != inputs(self.config):
            raise InputError(
                f"students.{name}.start: expected a student with its convolutions, halvings, layers, units, "
                f"pooling, bands, frames and events, got {student.start}"
            )
        if student.quant.scheme == "integer" and found.quant != QuantConfig():
            raise InputError(
                f"students.{name}.start: expected a float student, from which the integer scheme goes on, "
                f"got {student.start}, quantized"
            )
        return run, other

    def best_variables(self, name: str) -> Any:
        """The variables of the state that did best on validation; raises InputError if there is none."""
        norm = (np.zeros(self.shape[1], np.float32),) * 2
        shapes = jax.eval_shape(partial(self.new_state, name, norm))
        return checkpoint.best_model(self.folder / name / "checkpoints", shapes)


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Begin the run of `config`, or go on with it; nobody else can until the block ends.

    Settings and recordings bind from the first checkpoint on.  Raises InputError if the folder
    holds a run of other settings, if another process is at it, or if the recordings won't do.
    """
    folder = Path(config.runs) / config.name
    config = _resolved(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise InputError(f"{folder}: another process trains this run; give another --name") from None
    with lock:
        if any(folder.glob("*/checkpoints/*")):
            before = load_run(folder).config
            if not config.data.events:
                config = with_data(config, events=before.data.events)
            _check_same(before, config, folder / "config.json")
            yield Run(folder, config)
        else:
            yield _begin(Run(folder, config))


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
    if bad:
        with whole_file(run.folder / "left-out.txt", "w") as file:
            file.writelines(f"{reason}\n" for reason in bad)
    write_clips(run.folder / "clips.jsonl", clips)
    with whole_file(run.folder / "config.json", "w") as file:
        file.write(to_json(config) + "\n")
    return Run(run.folder, config)


def load_run(folder: Path) -> Run:
    """The run in `folder`; raises InputError if it holds none."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a run with a config.json, found none")
    config = from_json(Config, path.read_text(), str(path))
    if config.data.source == "demo":  # its recordings move with the run
        config = with_data(config, root=_demo_root(folder))
    return Run(folder, config)


def _resolved(config: Config, folder: Path) -> Config:
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
    cache = config.cache and str(Path(config.cache).absolute())
    return with_data(dataclasses.replace(config, distill=distill, students=students, cache=cache), root=root)


def _demo_root(folder: Path) -> str:
    return str((folder / "data").absolute())


def _check_same(old: Config, new: Config, path: Path) -> None:
    # The folder is the same, however it is spelled, and features are the same wherever they are kept.
    new = dataclasses.replace(new, name=old.name, runs=old.runs, cache=old.cache)
    before, after = _fields(old), _fields(new)
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
