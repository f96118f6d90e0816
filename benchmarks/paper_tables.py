"""The students of the four tables of Shi et al. 2019, trained and scored on one set of recordings.

python -m benchmarks.paper_tables --data DIR --out DIR [--small]

Each student is a run of its own below DIR, the most telling first.  What is done is skipped, and what
was stopped goes on.  DIR/tables.md and tables.json hold what there is, beside the paper's figures.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from benchmarks.standard import TEACHER_LOGITS, standard_config, taught_by
from qkd_jax.command import override, run_command
from qkd_jax.config import Config, QuantConfig, StudentConfig
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits, write_logits
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.scores import clip_logits, make_predict
from qkd_jax.files import whole_file
from qkd_jax.models.build import build_model
from qkd_jax.train.folder import TEACHER, Run, load_run
from qkd_jax.train.run import train
from qkd_jax.train.teachers import own_logits

POST_MORTEM = (8, 4)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to train on, and how much."""

    data: str = ""
    """Folder of the recordings, with their manifest: the standard set."""
    out: str = "runs/paper_tables"
    """Folder of the runs and the tables."""
    small: bool = False
    """One seed and the committed teacher's logits, for two cores; else three seeds and a new teacher."""


def cells(sizes: Sequence[int] = (256, 64, 128)) -> dict[str, StudentConfig]:
    """The students by name, the most telling first; `sizes` are units, the paper's main one first."""
    first, *_ = sizes
    students = {f"plain-{first}": StudentConfig(units=first, distill=False)}
    for units in sizes:
        for bits in (32, 4, 8):
            name = f"distilled-{units}" if bits == 32 else f"distilled-{units}-{bits}"
            quant = QuantConfig() if bits == 32 else QuantConfig.paper(bits)
            students[name] = StudentConfig(units=units, quant=quant)
    students[f"distilled-{first}-16"] = StudentConfig(units=first, quant=QuantConfig.paper(16))
    students[f"plain-3x{first}"] = StudentConfig(units=first, layers=3, distill=False)
    return students


def train_cells(base: Config, students: Mapping[str, StudentConfig], seeds: Sequence[int]) -> Iterator[str]:
    """Train what isn't trained of each student with each seed, and score it; yields each run's name then."""
    todo = [(name, seed) for seed in seeds for name in students]
    work = {
        name: student.layers * (student.units + base.features.n_mels) * student.units
        for name, student in students.items()
    }
    spent = done_work = 0.0
    for number, (name, seed) in enumerate(todo, 1):
        config = dataclasses.replace(
            base,
            name=f"{name}-seed{seed}",
            students={name: students[name]},
            train=dataclasses.replace(base.train, seed=seed),
        )
        folder = Path(base.runs) / config.name
        if not (folder / "report.html").is_file():
            left = sum(work[other] for other, _ in todo[number - 1 :])
            guess = f", at most {spent / done_work * left / 60:.0f} minutes left" if done_work else ""
            print(f"\n{config.name}: {number} of {len(todo)}{guess}", flush=True)
            begun = time.monotonic()
            train(config)
            spent, done_work = spent + time.monotonic() - begun, done_work + work[name]
        if students[name].distill and students[name].quant == QuantConfig():
            for bits in POST_MORTEM:
                _score_post_mortem(load_run(folder), name, bits)
        yield config.name


def _score_post_mortem(run: Run, name: str, bits: int) -> None:
    """Keep the test logits of a float student that is quantized only now (section 4.2.3)."""
    path = run.folder / name / f"logits-test-pm{bits}.npz"
    if path.is_file():
        return
    config = run.config
    data = load_split(config, run.clips, "test", run.cache)
    student = dataclasses.replace(config.students[name], quant=QuantConfig.paper(bits))
    predict, variables = make_predict(build_model(student, len(data.events))), run.best_variables(name)
    logits = clip_logits(predict, variables, data, config.frames, config.train.batch_size)
    write_logits(path, data.names, data.events, logits)


def gather(base: Config, students: Mapping[str, StudentConfig], seeds: Sequence[int]) -> dict[str, Any]:
    """What has been scored: each student's bytes, parameters and, seed by seed, `metrics` on the test split.

    Post-mortem scores are under STUDENT-pmBITS.
    """
    found: dict[str, Any] = {}
    for name in students:
        for seed in seeds:
            folder = Path(base.runs) / f"{name}-seed{seed}"
            if not (folder / "results.json").is_file():
                continue
            results = json.loads((folder / "results.json").read_text())["models"][name]
            cost = {key: results[key] for key in ("parameters", "multiply_adds", "bytes")}
            found.setdefault(name, cost | {"seeds": {}})["seeds"][seed] = results["metrics"]
            for path in sorted((folder / name).glob("logits-test-pm*.npz")):
                metrics = _metrics(load_run(folder), path)
                after = found.setdefault(f"{name}-{path.stem.split('-')[-1]}", {"seeds": {}})
                after["seeds"][seed] = metrics
    return found


def _metrics(run: Run, path: Path) -> dict[str, dict[str, float]]:
    clips, events = [clip for clip in run.clips if clip.split == "test"], run.config.data.events
    logits = read_logits(path, [clip.name for clip in clips], events)
    targets = np.array([[event in clip.labels for event in events] for clip in clips], np.float32)
    return evaluate(targets, logits, events)


def tables(found: Mapping[str, Any], sizes: Sequence[int] = (256, 64, 128)) -> str:
    """Tables 1, 3 and 4 in Markdown: AUC / EER in percent, the mean over seeds, and beside it the paper's."""
    first = sizes[0]
    rows = {
        "LSTM, 3 layers": (f"plain-3x{first}", "93.87 / 13.52"),
        "LSTM, 1 layer": (f"plain-{first}", "92.10 / 15.08"),
        "distilled": (f"distilled-{first}", "95.41 / 11.16"),
        "distilled, 16 bits": (f"distilled-{first}-16", "almost no loss"),
        "distilled, 8 bits": (f"distilled-{first}-8", "94.67 / 11.68"),
        "distilled, 4 bits": (f"distilled-{first}-4", "94.28 / 12.53"),
    }
    events = _events(found)
    lines = [
        "| model | average | " + " | ".join(events) + " | bytes | seeds | paper, its data |",
        "|---" * (len(events) + 5) + "|",
    ]
    for label, (name, paper) in rows.items():
        cost = f"{found[name]['bytes']:,}" if name in found else "–"
        figures = [_mean(found, name, event) for event in ("average", *events)]
        lines.append(f"| {label} | {' | '.join(figures)} | {cost} | {_count(found, name)} | {paper} |")
    lines += [
        "",
        "| units | float | 8 bits | 8 bits, post-mortem | 4 bits | 4 bits, post-mortem |",
        "|---" * 6 + "|",
    ]
    for units in sorted(sizes, reverse=True):
        name = f"distilled-{units}"
        names = (name, f"{name}-8", f"{name}-pm8", f"{name}-4", f"{name}-pm4")
        lines.append(f"| {units} | " + " | ".join(_mean(found, cell, "average") for cell in names) + " |")
    return "\n".join(lines) + "\n"


def _events(found: Mapping[str, Any]) -> list[str]:
    for row in found.values():
        for metrics in row["seeds"].values():
            return [event for event in metrics if event != "average"]
    return []


def _count(found: Mapping[str, Any], name: str) -> int:
    return len(found[name]["seeds"]) if name in found else 0


def _mean(found: Mapping[str, Any], name: str, event: str) -> str:
    """AUC / EER, the mean over seeds with half their range; a dash where nothing has been scored yet."""
    if name not in found:
        return "–"
    values = np.array([[row[event][key] for key in ("auc", "eer")] for row in found[name]["seeds"].values()])
    spread = np.ptp(values, axis=0) / 2
    marks = [f" ± {half:.2f}" if len(values) > 1 else "" for half in spread]
    auc, eer = values.mean(axis=0)
    return f"{auc:.2f}{marks[0]} / {eer:.2f}{marks[1]}"


def write_tables(base: Config, students: Mapping[str, StudentConfig], seeds: Sequence[int]) -> str:
    """Keep what has been scored as tables.json and tables.md beside the runs; returns the tables."""
    found = gather(base, students, seeds)
    sizes = list(dict.fromkeys(student.units for student in students.values()))
    text = tables(found, sizes)
    for name, content in (("tables.json", json.dumps(found, indent=2) + "\n"), ("tables.md", text)):
        with whole_file(Path(base.runs) / name, "w") as file:
            file.write(content)
    return text


def main(arguments: list[str]) -> None:
    """Train and score what there is time for; the tables are written after each student."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.paper_tables", description=__doc__)
    base = standard_config(settings.data, settings.out)
    seeds = (0,) if settings.small else (0, 1, 2)
    teacher = TEACHER_LOGITS
    if not settings.small:
        run = load_run(train(dataclasses.replace(base, name="teacher")))
        own_logits(run, load_split(run.config, run.clips, "train", run.cache))
        teacher = run.folder / TEACHER / "teaching.npz"
    base = taught_by(base, teacher)
    for _ in train_cells(base, cells(), seeds):
        write_tables(base, cells(), seeds)
    print(write_tables(base, cells(), seeds))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
