"""Past the paper: students with convolutions in front, at 8 to 2 bits, taught by a tagger on many scenes.

python -m benchmarks.past_paper --data DIR --tagger FILE.toml [--manifest FILE] [--out DIR] [--only NAME …]

Of each size a first student learns in float from the tagger and the labels.  From its best state all
others go on, in float and at each number of bits by the same recipe, taught by the mean of its logits
and the tagger's; 2w4 has the weights of LSTM and convolutions at 2 bits and all else at 4, integer-N
is in the integer scheme with weights at N bits.  What they come to is kept in DIR/cells below --out;
what is there is skipped, and what was stopped goes on.
"""

import dataclasses
import sys
from pathlib import Path

from pydantic.dataclasses import dataclass

from benchmarks.standard import standard_config
from benchmarks.students import Student, lacking, named, train_students, trained
from qkd_jax.commands.cli import load_preset, override, run_command
from qkd_jax.commands.evaluate import score_run
from qkd_jax.config import LSTMConfig, QuantConfig, RunConfig, with_data
from qkd_jax.distill.tagger import read_tagger
from qkd_jax.errors import InputError
from qkd_jax.run_folder.folder import load_run

_SMALL = load_preset("small", Path(__file__).parents[1] / "configs")
SIZES = {
    "conv-128": _SMALL.students["distilled"],
    "conv-64": LSTMConfig(convolutions=(8, 16, 32, 32), time_strides=3, hidden_size=64, pooling="attention"),
}
BITS = (8, 4, 3, 2)
FIRST_EPOCHS, EPOCHS = 8, 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to train on, and what."""

    data: str = ""
    """Folder of the recordings: the standard set."""
    manifest: str = "metadata.csv"
    """Their manifest, relative to it; one that lists more training scenes, for more of them."""
    tagger: str = ""
    """The tagger that teaches."""
    out: str = "runs/past-paper"
    """Folder of the runs and the cells."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the training."""
    only: tuple[str, ...] = ()
    """Which students; all by default."""


def students(size: str, start: str, *teachers: Path) -> list[Student]:
    """Those of `size` that go on from the student `start` (RUN/STUDENT), the one in float first."""
    floating = dataclasses.replace(SIZES[size], start=start, learning_rate=1e-3)
    at = {str(bits): QuantConfig.per_channel(bits) for bits in BITS}
    at["2w4"] = dataclasses.replace(QuantConfig.per_channel(4), weights=2)
    at |= {f"integer-{bits}": QuantConfig.integer(bits) for bits in BITS}
    students = {bits: dataclasses.replace(floating, quant=quant) for bits, quant in at.items()}
    also = {
        f"{size}-pm{bits}": settings
        for bits, settings in students.items()
        if settings.quant.scheme == "paper"  # the other can't do without training: it has no units then
    }
    return [
        Student(size, floating, teachers, also=also),
        *(Student(f"{size}-{bits}", settings, teachers) for bits, settings in students.items()),
    ]


def first_student(base: RunConfig, size: str, tagger: Path, seed: int) -> tuple[str, Path]:
    """The one in float, as RUN/STUDENT, trained if it isn't, and its logits on the training scenes."""
    name = f"{size}-first"
    base = dataclasses.replace(base, train=dataclasses.replace(base.train, student_epochs=FIRST_EPOCHS))
    folder = trained(base, Student(name, SIZES[size], (tagger,)), seed)
    logits = folder / name / "logits-train.npz"
    if not logits.is_file():
        score_run(load_run(folder), only=name, split="train")
    return f"{folder}/{name}", logits


def main(arguments: list[str]) -> None:
    """Train and score what there is time for."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.past_paper", description=__doc__)
    base = with_data(standard_config(settings.data, settings.out), manifest=settings.manifest)
    base = dataclasses.replace(base, train=dataclasses.replace(base.train, student_epochs=EPOCHS))
    if not settings.tagger:
        raise InputError("--tagger: expected a tagger's settings, got none")
    tagger, cells = Path(settings.tagger), Path(settings.out) / "cells"
    read_tagger(tagger)
    every = [student for size in SIZES for student in students(size, "")]
    wanted = [student.name for student in named(every, settings.only)]

    for seed in settings.seeds:
        for size in SIZES:
            if any(lacking(s, cells, seed) for s in students(size, "") if s.name in wanted):
                start, logits = first_student(base, size, tagger, seed)
                chosen = [s for s in students(size, start, logits, tagger) if s.name in wanted]
                train_students(base, chosen, (seed,))
    print(f"\nall done; python -m benchmarks.past_page --data {settings.data} --cells {cells} makes the page")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
