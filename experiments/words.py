"""The paper's tables on words: 12,000 Arabic words of 40 kinds by 30 speakers (Ghandoura et al. 2021).

DATA is the folder of the recordings: a file per speaker, whose words of one second stand in clips.csv.  The
publishers' split is by speaker.  Models and training are those of preset paper, with more epochs; the
students of cell `small` are those of preset small, with weights of 8 to 2 bits in the integer-only scheme.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.common import DASH, markdown, spread
from experiments.bootstrap import DRAWS, average_eer, averages, findings_table, resample
from experiments.cells import Cell, Place, Results, read_results
from experiments.paper import FINDINGS
from experiments.paper import SIZES as UNITS
from experiments.plots import plot_sizes
from experiments.tables import read_rows, write_rows
from qkd_jax.commands.cli import load_preset
from qkd_jax.config import DenseNetConfig, LSTMConfig, ManifestData, ModelConfig, QuantConfig, RunConfig
from qkd_jax.data.arrays import read_npz
from qkd_jax.data.logits import read_logits
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

SEEDS, FEWER = (0, 1, 2, 3, 4), (0, 1, 2)
SECOND, EPOCHS, TEACHER_EPOCHS = 16_000, 30, 12
SMALL_EPOCHS, SMALL_BITS = 10, (8, 4, 3, 2)
"""Epochs of each quantized student of cell `small`, after as many as the others of its float one."""
TEACHER = "teacher-seed0.npz"
ALPHA, TEMPERATURE = 0.5, 2.0
TRIED = ((0.5, 2.0), (0.9, 2.0), (0.5, 1.0), (0.9, 1.0))
"""Alpha and temperature, to choose from on validation with the student of 128 units."""


def cells(seed: int) -> list[Cell]:
    """The runs of one seed; the students of all seeds have the teacher of seed 0."""

    def cell(
        name: str,
        models: dict[str, ModelConfig],
        alpha: float = ALPHA,
        temperature: float = TEMPERATURE,
        **fields: Any,
    ) -> Cell:
        chosen: dict[str, Any] = {"alpha": alpha, "temperature": temperature}
        recipe = dataclasses.replace(load_preset("paper").recipe, seed=seed, epochs=EPOCHS, **chosen)
        data = ManifestData(clip_seconds=1.0)
        config = RunConfig(name=f"words-{name}-seed{seed}", data=data, recipe=recipe, models=models)
        return Cell(name, config, f"seed{seed}", **fields)

    def lstm(bits: int = 32, **fields: Any) -> LSTMConfig:
        return LSTMConfig(quant=QuantConfig() if bits == 32 else QuantConfig.paper(bits), **fields)

    def distilled(name: str, size: int, bits: Sequence[int]) -> dict[str, ModelConfig]:
        return {
            name if each == 32 else f"{name}-{each}": ModelConfig(
                network=lstm(each, hidden_size=size), teachers=(TEACHER,)
            )
            for each in bits
        }

    def of_size(size: int) -> Cell:
        name = f"distilled-{size}"
        models = {f"plain-{size}": ModelConfig(network=lstm(hidden_size=size))} | distilled(
            name, size, (32, 8, 4)
        )
        after = {f"{name}-pm{bits}": (name, lstm(bits, hidden_size=size)) for bits in (8, 4)}
        return cell(f"words-{size}", models, quantized=after)

    made = [of_size(256), of_size(64)]
    if seed in FEWER:
        made += [of_size(128), cell("fewer-bits", distilled("distilled-256", 256, (3, 2)))]
        made.append(cell("plain-3x256", {"plain-3x256": ModelConfig(network=lstm(layers=3))}))
        made.append(Cell("small", _small(seed), f"seed{seed}"))
    if seed == 0:
        made.append(cell("sixteen-bits", distilled("distilled-256", 256, (16,))))
        teachers = {"teacher": DenseNetConfig(pooling="time"), "teacher-all": DenseNetConfig()}
        for name, network in teachers.items():
            model = ModelConfig(network=network, epochs=TEACHER_EPOCHS)
            made.append(cell(name, {name: model}, teaches=name == "teacher"))
        for alpha, temperature in TRIED:
            name = f"tune-{alpha:g}-{temperature:g}"
            made.append(cell(name, distilled(name, 128, (32,)), alpha, temperature))
    return made


def _small(seed: int) -> RunConfig:
    """Preset small on words; the students learn from the same teacher as those of the paper."""
    preset = load_preset("small")
    student = dataclasses.replace(preset.models["distilled"], teachers=(TEACHER,), epochs=EPOCHS)
    network = student.network
    assert isinstance(network, LSTMConfig)
    on = dataclasses.replace(student, start="small", learning_rate=1e-3, epochs=SMALL_EPOCHS)
    models = {
        f"small-{bits}": dataclasses.replace(on, network=network.quantized(QuantConfig.integer(bits)))
        for bits in SMALL_BITS
    }
    return dataclasses.replace(
        preset,
        name=f"words-small-seed{seed}",
        data=ManifestData(clip_seconds=1.0),
        recipe=dataclasses.replace(preset.recipe, seed=seed),
        models={"small": student} | models,
    )


def prepared(place: Place) -> Place:
    """`place` with the words cut into files as its data, with a table."""
    assert place.data is not None
    folder, takes = place.runs / "words", defaultdict(list)
    table = place.data / "clips.csv"
    for row in read_rows(table):
        takes[row["speaker"]].append(row)
    rows = []
    for speaker, of_speaker in takes.items():
        names = [f"{row['word']}/{speaker}_{row['take']}.wav" for row in of_speaker]
        rows += [
            {"filename": name, "labels": row["word"], "split": row["split"], "group": speaker}
            for name, row in zip(names, of_speaker)
        ]
        if all((folder / name).is_file() for name in names):
            continue
        samples, rate = soundfile.read(place.data / "audio" / f"{speaker}.ogg", dtype="int16")
        if rate != SECOND or len(samples) != SECOND * len(names):
            raise InputError(
                f"{table}: expected {len(samples) / rate:g} words of {speaker}, got {len(names)}"
            )
        for name, word in zip(names, samples.reshape(-1, SECOND)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with whole_file(folder / name) as file:
                soundfile.write(file, word, rate, format="WAV")
    write_rows(folder / "metadata.csv", rows)
    return dataclasses.replace(place, data=folder)


ROWS = {
    "teacher": "DenseNet-63",
    "teacher-all": "DenseNet-63, pooled over mel bands too",
    "plain-3x256": "LSTM, 3 layers",
    "plain-256": "LSTM",
    "distilled-256": "LSTM, distilled",
    "distilled-256-16": "16 bits",
    "distilled-256-8": "8 bits",
    "distilled-256-pm8": "8 bits, PM",
    "distilled-256-4": "4 bits",
    "distilled-256-pm4": "4 bits, PM",
    "distilled-256-3": "3 bits",
    "distilled-256-2": "2 bits",
}
SMALL = {"small": "float"} | {f"small-{bits}": f"{bits} bits" for bits in SMALL_BITS}
SIZES = {"plain": "plain", "distilled": "distilled"} | {
    f"distilled{suffix}": text
    for suffix, text in {"-8": "8 bits", "-pm8": "8 bits, PM", "-4": "4 bits", "-pm4": "4 bits, PM"}.items()
}


def parts(folder: Path) -> dict[str, str]:
    """The marked parts of the page, from the results in `folder`/cells."""
    results = read_results(folder / "cells")
    if not results:
        return dict.fromkeys(("models", "sizes", "small", "findings", "tuning"), "Not measured yet.")
    draws = eer_draws(folder / "cells", results)
    findings = [finding for finding in FINDINGS if finding.text != "4 bits against DenseNet-63"]
    students = [*(f"distilled-{size}" for size in UNITS), "small"]
    final = {name: of_seeds for name, of_seeds in results.items() if not name.startswith("tune-")}
    plot_sizes(folder / "eer-bytes.png", students, (2, 3, 4, 8, 16), final, draws)
    return {
        "models": _models(results, ROWS),
        "sizes": _sizes(results),
        "small": _models(results, SMALL),
        "findings": findings_table(findings, results, draws),
        "tuning": _tuning(results),
    }


def eer_draws(folder: Path, results: Results) -> dict[str, np.ndarray]:
    """The average EER of each model in percent, [draws], over test speakers and seeds drawn with replacement.

    All models share the draws of speakers, and those with as many seeds share the draws of seeds.
    """
    draws: dict[str, np.ndarray] = {}
    for name, of_seeds in results.items():
        errors = np.stack([_errors(folder / f"{name}-{part}.npz") for part in of_seeds])
        count = len(errors)
        drawn = np.random.default_rng(count).integers(0, count, (count, DRAWS))
        draws[name] = np.take_along_axis(errors, drawn, axis=0).mean(axis=0)
    return draws


def _errors(path: Path) -> np.ndarray:
    """The average EER of the logits at `path` for each draw of speakers, [draws]."""
    names, events = (array.tolist() for array in read_npz(path, "logits", names=("U", 1), events=("U", 1)))
    clips = [Path(name) for name in names]
    truth = np.array([[clip.parent.name == event for event in events] for clip in clips])
    weights = resample([f"speaker={clip.stem.rpartition('_')[0]}" for clip in clips], DRAWS, 0)
    return average_eer(truth, read_logits(path, names, events), weights)


def _models(results: Results, names: Mapping[str, str]) -> str:
    """A row per model of `names`: EER and words right on the test speakers, bytes and work."""
    rows = []
    for name, text in names.items():
        if name not in results:
            continue
        seeds = list(results[name].values())
        one = seeds[0]
        work = f"{(one.multiply_adds or 0) / 1e6:.1f} M"
        rounded = f"{one.quantized_values / 1e6:.2f} M" if one.quantized_values else DASH
        valid = spread([(each.valid or {})["accuracy"] for each in seeds]) if one.valid else DASH
        rows.append(
            [
                text,
                str(len(seeds)),
                *averages(seeds, "eer", "accuracy"),
                valid,
                f"{one.bytes:,}",
                work,
                rounded,
            ]
        )
    head = [
        "model",
        "seeds",
        "EER",
        "words right",
        "words right, validation",
        "bytes",
        "multiply-adds",
        "rounded",
    ]
    return markdown(head, rows)


def _sizes(results: Results) -> str:
    """EER and words right by hidden size and bits."""
    rows = []
    for key, title in (("eer", "EER"), ("accuracy", "words right")):
        for size in UNITS:
            figures = []
            for name in SIZES:
                kind, dash, suffix = name.partition("-")
                seeds = results.get(f"{kind}-{size}{dash}{suffix}", {}).values()
                figures += averages(seeds, key) if seeds else [DASH]
            rows.append([f"{title}, {size} units", *figures])
    return markdown(["", *SIZES.values()], rows)


def _tuning(results: Results) -> str:
    """Figures on validation of each alpha and temperature that was tried."""
    rows = []
    for alpha, temperature in TRIED:
        for result in results.get(f"tune-{alpha:g}-{temperature:g}", {}).values():
            valid = result.valid or {}
            figures = [f"{valid[key]:.2f}" for key in ("auc", "eer", "accuracy")]
            rows.append([f"{alpha:g}", f"{temperature:g}", *figures, str(result.best_epoch)])
    return markdown(["alpha", "temperature", "AUC", "EER", "words right", "best epoch"], rows)
