"""The models of the four tables of Shi et al. 2019, trained and scored on one set of recordings.

python -m benchmarks.paper_tables --data DIR --out DIR [--small] [--tagger FILE.toml] [--only NAME …]

Each student is a run of its own below the second DIR, the most telling first.  What it came to, logits
and figures, is kept in DIR/cells, small enough to be committed.  What is there is skipped, whether
or not the runs are there too, and what was stopped goes on: for other settings, give another DIR.
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic.dataclasses import dataclass

from benchmarks.standard import (
    TEACHER_LOGITS,
    Cell,
    cell_path,
    read_cells,
    standard_config,
    taught_by,
    write_cell,
)
from qkd_jax.command import override, run_command
from qkd_jax.config import Config, InputError, QuantConfig, StudentConfig, TeacherConfig
from qkd_jax.data.clips import SPLITS, targets
from qkd_jax.data.dataset import load_split
from qkd_jax.data.source import read_clips
from qkd_jax.distill.tagger import read_tagger, tagger_logits
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.scores import clip_logits, make_predict
from qkd_jax.models.build import build_model
from qkd_jax.train.folder import TEACHER, Run, load_run
from qkd_jax.train.log import read_log
from qkd_jax.train.run import train

POST_MORTEM = (8, 4)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to train on, and how much."""

    data: str = ""
    """Folder of the recordings, with their manifest: the standard set."""
    out: str | None = None
    """Folder of the runs and the cells; runs/paper-full, or runs/paper-small, if none is given."""
    small: bool = False
    """For two cores: one seed, 12 epochs, the committed teacher's logits; else three, 30, and a new one."""
    tagger: str = ""
    """A tagger to score as it is, and to teach a student, alone and beside the teacher."""
    only: tuple[str, ...] = ()
    """Which students; all by default."""


@dataclasses.dataclass(frozen=True)
class Student:
    """A student by name, and the files of those who teach it."""

    name: str
    settings: StudentConfig
    teachers: tuple[Path, ...]

    def work(self, base: Config) -> int:
        """How long it trains, up to a factor."""
        return self.settings.layers * (self.settings.units + base.features.n_mels) * self.settings.units


def students(sizes: Sequence[int] = (256, 64, 128)) -> dict[str, StudentConfig]:
    """The paper's students by name, the most telling first; `sizes` are units, its main one first."""
    first, *_ = sizes
    found = {f"plain-{first}": StudentConfig(units=first, distill=False)}
    for units in sizes:
        for bits in (32, 4, 8):
            name = f"distilled-{units}" if bits == 32 else f"distilled-{units}-{bits}"
            found[name] = StudentConfig(units=units) if bits == 32 else _quantized(units, bits)
    found[f"distilled-{first}-16"] = _quantized(first, 16)
    found[f"plain-3x{first}"] = StudentConfig(units=first, layers=3, distill=False)
    return found


def _quantized(units: int, bits: int) -> StudentConfig:
    """Trained on from the float student, which on validation was better than quantized from the start."""
    return StudentConfig(units=units, quant=QuantConfig.paper(bits), learning_rate=1e-3)


def scored_as(name: str, student: StudentConfig) -> dict[str, StudentConfig]:
    """As what a trained student is scored, by cell.

    As itself and, if it is the distilled one in float, also quantized only now (post-mortem, section 4.2.3).
    """
    found = {name: student}
    if name == f"distilled-{student.units}":
        for bits in POST_MORTEM:
            found[f"{name}-pm{bits}"] = dataclasses.replace(student, quant=QuantConfig.paper(bits))
    return found


def train_students(base: Config, wanted: Sequence[Student], seeds: Sequence[int]) -> None:
    """Train each student with each seed and keep its cells, except those that are kept already."""
    folder = Path(base.runs) / "cells"
    kept = read_cells(folder)
    spent = done = 0.0
    todo = []
    for seed in seeds:
        for student in wanted:
            cells = {
                path: settings
                for cell, settings in scored_as(student.name, student.settings).items()
                if not (path := cell_path(folder, cell, seed)).is_file()
            }
            if cells:
                todo.append((student, seed, cells))
            elif seconds := kept[student.name][seed].seconds:
                spent, done = spent + seconds, done + student.work(base)
    for index, (student, seed, cells) in enumerate(todo):
        left = sum(other.work(base) for other, *_ in todo[index:])
        guess = f", at most {spent / done * left / 60:.0f} minutes left" if done else ""
        print(f"\n{student.name}-seed{seed}: {len(todo) - index} left{guess}", flush=True)
        begun = time.monotonic()
        settings = student.settings
        if settings.quant != QuantConfig():
            name = f"distilled-{settings.units}"
            first = _config(base, Student(name, StudentConfig(units=settings.units), student.teachers), seed)
            if not (Path(base.runs) / first.name / "report.html").is_file():
                print(f"{first.name}, to begin with", flush=True)
                train(first)
            settings = dataclasses.replace(settings, start=f"{base.runs}/{first.name}/{name}")
        config = _config(base, dataclasses.replace(student, settings=settings), seed)
        _train_and_keep(config, student.name, cells)
        spent, done = spent + time.monotonic() - begun, done + student.work(base)


def _config(base: Config, student: Student, seed: int) -> Config:
    """The run of one student."""
    return dataclasses.replace(
        taught_by(base, *student.teachers),
        name=f"{student.name}-seed{seed}",
        students={student.name: student.settings},
        train=dataclasses.replace(base.train, seed=seed),
    )


def train_teacher(base: Config, path: Path) -> None:
    """Train the teacher and keep its cell at `path`, with logits on the scenes of all splits."""
    _train_and_keep(dataclasses.replace(base, name=TEACHER), TEACHER, {path: base.teacher}, SPLITS)


def score_tagger(base: Config, file: Path, path: Path) -> None:
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


def _train_and_keep(
    config: Config,
    name: str,
    cells: Mapping[Path, StudentConfig | TeacherConfig],
    splits: Sequence[str] = ("test",),
) -> None:
    """Run `config`, and keep its model `name`, scored as each of `cells`, at the path given for it."""
    new, begun = not (Path(config.runs) / config.name).exists(), time.monotonic()
    run = load_run(train(config))
    seconds = time.monotonic() - begun if new else None
    taught = name != TEACHER and config.students[name].distill
    epochs = [record for record in read_log(run.folder / name) if "epoch" in record]
    best = max(epochs, key=lambda record: (record["valid"]["auc"], record["epoch"]))
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


def main(arguments: list[str]) -> None:
    """Train and score what there is time for."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.paper_tables", description=__doc__)
    base = standard_config(
        settings.data, settings.out or f"runs/paper-{'small' if settings.small else 'full'}"
    )
    if not settings.small:
        longer = dataclasses.replace(base.train, teacher_epochs=30, student_epochs=30)
        base = dataclasses.replace(base, train=longer)
    folder = Path(base.runs) / "cells"
    teacher = cell_path(folder, TEACHER, 0)
    logits = teacher.with_suffix(".npz")
    wanted = [Student(name, student, (logits,)) for name, student in students().items()]
    tagger = Path(settings.tagger)
    if settings.tagger:
        read_tagger(tagger)
        wanted.append(Student(f"distilled-256-{tagger.stem}", StudentConfig(), (tagger,)))
        wanted.append(Student("distilled-256-both", StudentConfig(), (logits, tagger)))
    names = [student.name for student in wanted]
    for name in settings.only:
        if name not in names:
            raise InputError(f"--only: expected some of {', '.join(names)}, got {name!r}")

    if settings.tagger:
        score_tagger(base, tagger, cell_path(folder, tagger.stem, 0))
    if not teacher.is_file():
        if settings.small:
            folder.mkdir(parents=True, exist_ok=True)
            for file in (TEACHER_LOGITS, TEACHER_LOGITS.with_suffix(".json")):  # which says it is done
                shutil.copy(file, folder)
        else:
            train_teacher(base, teacher)
    chosen = [student for student in wanted if student.name in (settings.only or names)]
    train_students(base, chosen, (0,) if settings.small else (0, 1, 2))
    print(
        f"\nall done; python -m benchmarks.paper_page --data {settings.data} --cells {folder} makes the page"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
