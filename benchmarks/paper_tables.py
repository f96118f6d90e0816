"""The models of the four tables of Shi et al. 2019, trained and scored on one set of recordings.

python -m benchmarks.paper_tables --data DIR --out DIR [--small] [--tagger FILE.toml] [--only NAME …]

Each student is a run of its own below the second DIR, the most telling first.  What it came to, logits
and figures, is kept in DIR/cells, small enough to be committed.  What is there is skipped, whether
or not the runs are there too, and what was stopped goes on: for other settings, give another DIR.
"""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic.dataclasses import dataclass

from benchmarks.standard import TEACHER_LOGITS, cell_path, standard_config
from benchmarks.students import Student, named, score_tagger, train_and_keep, train_students
from qkd_jax.commands.cli import override, run_command
from qkd_jax.config import LSTMConfig, QuantConfig, RunConfig
from qkd_jax.data.clips import SPLITS
from qkd_jax.distill.tagger import read_tagger
from qkd_jax.run_folder.folder import TEACHER

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


def students(*teachers: Path, sizes: Sequence[int] = (256, 64, 128)) -> list[Student]:
    """The paper's students, the most telling first; `sizes` are units, its main one first."""
    first, *_ = sizes
    floats = {units: _distilled(units, teachers) for units in sizes}
    found = [Student(f"plain-{first}", LSTMConfig(units=first, distill=False), teachers)]
    for student in floats.values():
        found += [student, _quantized(student, 4), _quantized(student, 8)]
    found.append(_quantized(floats[first], 16))
    found += [_quantized(floats[first], bits, "integer") for bits in POST_MORTEM]
    found.append(Student(f"plain-3x{first}", LSTMConfig(units=first, layers=3, distill=False), teachers))
    return found


def _distilled(units: int, teachers: tuple[Path, ...]) -> Student:
    settings, name = LSTMConfig(units=units), f"distilled-{units}"
    also = {
        f"{name}-pm{bits}": dataclasses.replace(settings, quant=QuantConfig.paper(bits))
        for bits in POST_MORTEM
    }
    return Student(name, settings, teachers, also=also)


def _quantized(student: Student, bits: int, scheme: str = "") -> Student:
    """Trained on from the float student, which on validation was better than quantized from the start."""
    quant = QuantConfig.integer(bits) if scheme else QuantConfig.paper(bits)
    settings = dataclasses.replace(student.settings, quant=quant, learning_rate=1e-3)
    name = "-".join(filter(None, (student.name, scheme, str(bits))))
    return Student(name, settings, student.teachers, first=student)


def train_teacher(base: RunConfig, path: Path) -> None:
    """Train the teacher and keep its cell at `path`, with logits on the scenes of all splits."""
    train_and_keep(dataclasses.replace(base, name=TEACHER), TEACHER, {path: base.teacher}, SPLITS)


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
    wanted = students(logits)
    tagger = Path(settings.tagger)
    if settings.tagger:
        read_tagger(tagger)
        wanted.append(Student(f"distilled-256-{tagger.stem}", LSTMConfig(), (tagger,)))
        wanted.append(Student("distilled-256-both", LSTMConfig(), (logits, tagger)))
    wanted = named(wanted, settings.only)

    if settings.tagger:
        score_tagger(base, tagger, cell_path(folder, tagger.stem, 0))
    if not teacher.is_file():
        if settings.small:
            folder.mkdir(parents=True, exist_ok=True)
            for file in (TEACHER_LOGITS, TEACHER_LOGITS.with_suffix(".json")):  # which says it is done
                shutil.copy(file, folder)
        else:
            train_teacher(base, teacher)
    train_students(base, wanted, (0,) if settings.small else (0, 1, 2))
    print(
        f"\nall done; python -m benchmarks.paper_page --data {settings.data} --cells {folder} makes the page"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
