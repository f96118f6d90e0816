"""Training students of a benchmark, one after the other, and keeping what each came to."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.standard import Cell, cell_path, read_cells, taught_by, write_cell
from qkd_jax.config import LSTMConfig, RunConfig, TeacherConfig
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import targets
from qkd_jax.data.dataset import load_split
from qkd_jax.distill.tagger import read_tagger, tagger_logits
from qkd_jax.errors import InputError
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.prediction import clip_logits, make_predict
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.folder import TEACHER, Run, load_run
from qkd_jax.run_folder.log import read_epochs
from qkd_jax.training.run import train


@dataclasses.dataclass(frozen=True)
class Student:
    """A student by name, and the files of those who teach it."""

    name: str
    settings: LSTMConfig
    teachers: tuple[Path, ...]
    first: "Student | None" = None
    """Whose best state it begins with."""
    also: Mapping[str, LSTMConfig] = dataclasses.field(default_factory=dict)
    """As what else it is scored, by cell: quantized after training (post-mortem, section 4.2.3)."""

    def work(self, base: RunConfig) -> int:
        """How long it trains, up to a factor, beside others with the like in front of the LSTM."""
        return self.settings.layers * (self.settings.units + base.features.n_mels) * self.settings.units


def named(students: Sequence[Student], only: Sequence[str]) -> list[Student]:
    """The `students` of these names, all if there are none; raises InputError for an unknown one."""
    names = [student.name for student in students]
    for name in only:
        if name not in names:
            raise InputError(f"--only: expected some of {', '.join(names)}, got {name!r}")
    return [student for student in students if student.name in (only or names)]


def lacking(student: Student, folder: Path, seed: int) -> dict[Path, LSTMConfig]:
    """The cells of a student that `folder` doesn't have: their paths, and as what it is scored for each."""
    return {
        path: settings
        for cell, settings in {student.name: student.settings, **student.also}.items()
        if not (path := cell_path(folder, cell, seed)).is_file()
    }


def best_epoch(epochs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a model's epochs (`read_epochs`) the one whose state is kept: the last of the best AUC."""
    return max(epochs, key=lambda record: (record["valid"]["auc"], record["epoch"]))


def train_students(base: RunConfig, wanted: Sequence[Student], seeds: Sequence[int]) -> None:
    """Train each student with each seed and keep its cells, except those that are kept already."""
    folder = Path(base.runs) / "cells"
    kept = read_cells(folder)
    spent = done = 0.0
    todo = []
    for seed in seeds:
        for student in wanted:
            if cells := lacking(student, folder, seed):
                todo.append((student, seed, cells))
            elif seconds := kept[student.name][seed].seconds:
                spent, done = spent + seconds, done + student.work(base)
    for index, (student, seed, cells) in enumerate(todo):
        left = sum(other.work(base) for other, *_ in todo[index:])
        guess = f", at most {spent / done * left / 60:.0f} minutes left" if done else ""
        print(f"\n{student.name}-seed{seed}: {len(todo) - index} left{guess}", flush=True)
        begun = time.monotonic()
        if student.first:
            start = f"{trained(base, student.first, seed)}/{student.first.name}"
            settings = dataclasses.replace(student.settings, start=start)
            student = dataclasses.replace(student, settings=settings)
        train_and_keep(_config(base, student, seed), student.name, cells)
        spent, done = spent + time.monotonic() - begun, done + student.work(base)


def trained(base: RunConfig, student: Student, seed: int) -> Path:
    """The folder of a student's finished run, which is trained now if it is not there."""
    config = _config(base, student, seed)
    folder = Path(base.runs) / config.name
    if not (folder / "report.html").is_file():
        print(f"{config.name}, to begin with", flush=True)
        train(config)
    return folder


def _config(base: RunConfig, student: Student, seed: int) -> Config:
    """The run of one student."""
    return dataclasses.replace(
        taught_by(base, *student.teachers),
        name=f"{student.name}-seed{seed}",
        students={student.name: student.settings},
        train=dataclasses.replace(base.train, seed=seed),
    )


def score_tagger(base: RunConfig, file: Path, path: Path) -> None:
    """Keep at `path` the cell of the tagger that `file` describes, as it is, unless it is there."""
    if path.is_file():
        return
    clips, events = [clip for clip in read_clips(base.data) if clip.split == "test"], base.data.events
    logits = tagger_logits(file, clips, events, Run(Path(base.runs) / TEACHER, base).cache)
    if np.isnan(logits).any():
        raise InputError(f"{file}: events: expected all of {', '.join(events)}")
    cell = Cell(
        bytes=(file.parent / read_tagger(file).file).stat().st_size,
        metrics=evaluate(targets(clips, events), logits, events),
    )
    write_cell(path, cell, [clip.name for clip in clips], events, logits)


def train_and_keep(
    config: RunConfig,
    name: str,
    cells: Mapping[Path, LSTMConfig | TeacherConfig],
    splits: Sequence[str] = ("test",),
) -> None:
    """Run `config`, and keep its model `name`, scored as each of `cells`, at the path given for it."""
    new, begun = not (Path(config.runs) / config.name).exists(), time.monotonic()
    run = load_run(train(config))
    seconds = time.monotonic() - begun if new else None
    taught = name != TEACHER and config.students[name].distill
    epochs = read_epochs(run.folder / name)
    best = best_epoch(epochs)
    data = {split: load_split(run.config, run.clips, split, run.cache) for split in splits}
    variables = run.best_variables(name)
    for path, settings in cells.items():
        model = build_model(settings, len(config.data.events))
        predict = make_predict(model)
        logits = {
            split: clip_logits(predict, variables, part, config.frames, config.train.batch_size)
            for split, part in data.items()
        }
        cell = Cell(
            **model_cost(model, variables, run.shape, getattr(settings, "quant", None)),
            metrics=evaluate(data["test"].targets, logits["test"], config.data.events),
            valid=best["valid"],
            best_epoch=best["epoch"],
            epochs=len(epochs),
            scenes=sum(clip.split == "train" for clip in run.clips),
            teacher=", ".join(Path(file).name for file in config.distill.teachers) if taught else "",
            seconds=seconds,
        )
        names = [clip for part in data.values() for clip in part.names]
        write_cell(path, cell, names, config.data.events, np.concatenate(list(logits.values())))
