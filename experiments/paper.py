"""The four tables of Shi et al. 2019 on the standard set: plain, distilled and quantized LSTM students."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DASH, EVENTS, RESULTS, markdown, spread
from experiments import bootstrap
from experiments.bootstrap import Finding, change
from experiments.cells import Cell, Place, Result, Results, read_results, write_result
from experiments.plots import plot_det, plot_sizes
from qkd_jax.config import ClipRecipe, LSTMConfig, ManifestData, ModelConfig, QuantConfig, RunConfig
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import targets
from qkd_jax.distill.tagger import read_tagger, tagger_logits
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate

CELLS = RESULTS / "paper/cells"
TEACHER_LOGITS = CELLS / "teacher-seed0.npz"
"""Logits of DenseNet-63 on all scenes; its checkpoint is gone."""
SIZES = (256, 128, 64)
_QUANTIZED = {"-8": QuantConfig.paper(8), "-4": QuantConfig.paper(4)}
_FINER = {"-16": QuantConfig.paper(16), "-integer-4": QuantConfig.integer(4)}


def cells(seed: int) -> list[Cell]:
    """The runs of one seed, whose students learn from committed logits.

    Quantized students start from the float one: on validation that beat quantizing from the start.
    """
    teacher = str(TEACHER_LOGITS)

    def cell(name: str, models: dict[str, ModelConfig], **fields: Any) -> Cell:
        recipe, data = ClipRecipe(seed=seed, epochs=12), ManifestData(events=EVENTS)
        config = RunConfig(name=f"{name}-seed{seed}", data=data, recipe=recipe, models=models)
        return Cell(name, config, f"seed{seed}", **fields)

    def plain(name: str, network: LSTMConfig) -> Cell:
        return cell(name, {name: ModelConfig(network=network)})

    def distilled(size: int, more: Mapping[str, QuantConfig]) -> dict[str, ModelConfig]:
        name = f"distilled-{size}"
        student = ModelConfig(network=LSTMConfig(hidden_size=size), teachers=(teacher,))
        on = dataclasses.replace(student, start=name, learning_rate=1e-3)
        return {name: student} | {
            f"{name}{suffix}": dataclasses.replace(on, network=LSTMConfig(hidden_size=size, quant=quant))
            for suffix, quant in more.items()
        }

    def whole(size: int) -> Cell:
        name = f"distilled-{size}"
        after = {
            f"{name}-pm{bits}": (name, LSTMConfig(hidden_size=size, quant=QuantConfig.paper(bits)))
            for bits in (8, 4)
        }
        return cell(name, distilled(size, _QUANTIZED), quantized=after)

    def alone(name: str, *teachers: str, layers: int = 1) -> Cell:
        return cell(name, {name: ModelConfig(network=LSTMConfig(layers=layers), teachers=teachers)})

    # Finer ones in cells of their own, since a cell takes 75 minutes at most: the float student trains again.
    integer, unkept = {"-integer-8": QuantConfig.integer(8)}, ("distilled-256",)
    return [
        alone("plain-256"),
        *(whole(size) for size in SIZES),
        cell("distilled-256-finer", distilled(256, _FINER), unkept=unkept),
        cell("distilled-256-integer-8", distilled(256, integer), unkept=unkept),
        alone("distilled-256-yamnet", "yamnet.toml"),
        alone("distilled-256-both", teacher, "yamnet.toml"),
        alone("plain-3x256", layers=3),
    ]


def score_yamnet(place: Place, cells: Sequence[Cell]) -> None:
    """Keep the result of YAMNet as it is, without training."""
    file = place.tagger("yamnet.toml")
    data = ManifestData(root=str(place.data), events=EVENTS)
    clips = [clip for clip in read_clips(data) if clip.split == "test"]
    logits = tagger_logits(file, clips, EVENTS, place.runs / ".features")
    if np.isnan(logits).any():
        raise InputError(f"{file}: events: expected all of {', '.join(EVENTS)}")
    result = Result(
        metrics=evaluate(targets(clips, EVENTS), logits, EVENTS),
        bytes=(file.parent / read_tagger(file).file).stat().st_size,
        command=place.command,
    )
    write_result(place.path("yamnet"), result, [clip.name for clip in clips], EVENTS, logits)


# Our columns beside the paper's figures: AUC / EER in percent.
COLUMNS = ("average", *EVENTS)
FLOAT = ("95.41 / 11.16", "93.65 / 14.07", "95.81 / 10.21", "96.78 / 9.19")
EIGHT = ("94.67 / 11.68", "92.99 / 14.61", "95.00 / 10.19", "96.03 / 10.23")
FOUR = ("94.28 / 12.53", "92.84 / 14.72", "94.35 / 12.56", "95.65 / 10.31")
TABLE_1 = {
    "teacher": ("DenseNet-63", ("97.14 / 8.03", "95.68 / 11.11", "97.80 / 6.56", "97.93 / 6.41")),
    "plain-3x256": ("LSTM, 3 layers", ("93.87 / 13.52", "92.51 / 15.19", "93.66 / 13.58", "94.90 / 11.79")),
    "plain-256": ("LSTM, 1 layer", ("92.10 / 15.08", "91.35 / 16.60", "92.09 / 15.58", "92.86 / 13.07")),
    "distilled-256": ("LSTM, 1 layer, distilled", FLOAT),
}
TABLE_1_MORE = {
    "distilled-256-yamnet": "the same from YAMNet",
    "distilled-256-both": "the same from both, averaged",
    "yamnet": "YAMNet, zero-shot",
}
MN04 = ("90.4 / 16.8", "91.9 / 15.4", "93.1 / 14.4", "86.3 / 20.7")
"""EfficientAT mn04's figures, from the README of the recordings."""
TABLE_2 = {
    "teacher": ("2.28", "8.70", "1.38"),
    "plain-3x256": ("1.32", "5.27", "1.31"),
    "plain-256": ("0.33", "1.26", "0.32"),
    "distilled-256": ("0.33", "1.26", "0.32"),
}
TABLE_3 = {
    "distilled-256": ("float", FLOAT, "1.26"),
    "distilled-256-16": ("16 bits", ("almost no loss", DASH, DASH, DASH), DASH),
    "distilled-256-8": ("8 bits", EIGHT, "0.32"),
    "distilled-256-4": ("4 bits", FOUR, "0.17"),
}
TABLE_4 = {"": "float", "-8": "8 bits", "-pm8": "8 bits, PM", "-4": "4 bits", "-pm4": "4 bits, PM"}
TABLE_4_AUC = {
    256: ("95.41", "94.67", "94.55", "94.28", "92.64"),
    128: ("94.92", "94.61", "94.47", "93.98", "91.40"),
    64: ("94.30", "94.04", "93.41", "93.10", "89.52"),
}
# Missing from our copy of the paper, except for what its text and its table 3 state.
TABLE_4_EER = {256: ("11.16", "11.68", "float + 5.7 %", "12.53", "float + 27.0 %")}


def _growth(bits: int) -> Callable[[Mapping[str, Any]], Any]:
    """By how many points the gap between post-mortem and trained is wider at 64 units than at 256."""

    def gap(eer: Mapping[str, Any], size: int) -> Any:
        student = f"distilled-{size}"
        return 100 * (eer[f"{student}-pm{bits}"] - eer[f"{student}-{bits}"]) / eer[student]

    return lambda eer: gap(eer, 64) - gap(eer, 256)


FINDINGS = (
    Finding("distilled against plain", "−26.0 %", change("distilled-256", "plain-256"), "<"),
    Finding("distilled, 1 layer, against plain, 3", "−17.5 %", change("distilled-256", "plain-3x256"), "<"),
    Finding("8 bits against float", "+4.7 %", change("distilled-256-8", "distilled-256"), "<", 10),
    Finding("4 bits against float", "+12.3 %", change("distilled-256-4", "distilled-256"), "<", 20),
    Finding("8 bits PM against float", "+5.7 %", change("distilled-256-pm8", "distilled-256"), "<", 10),
    Finding("4 bits PM against float", "+27.0 %", change("distilled-256-pm4", "distilled-256"), ">", 20),
    Finding("8 bits PM against 8 bits", "+1.0 %", change("distilled-256-pm8", "distilled-256-8"), ">"),
    Finding("4 bits PM against 4 bits", "+13.1 %", change("distilled-256-pm4", "distilled-256-4"), ">"),
    Finding("4 bits against float, plain", "−16.9 %", change("distilled-256-4", "plain-256"), "<"),
    Finding("8 bits: gap to PM, 64 units − 256", "+7.4 points", _growth(8), ">", unit="points"),
    Finding("4 bits: gap to PM, 64 units − 256", "grows", _growth(4), ">", unit="points"),
    Finding("4 bits against DenseNet-63", "+56.0 %", change("distilled-256-4", "teacher"), "<", 56),
)
_SHOWN = ("teacher", "plain-256", "distilled-256", "distilled-256-8", "distilled-256-4", "yamnet")


def parts(folder: Path) -> dict[str, str]:
    """The marked parts of the page, from the results in `folder`/cells; draws both pictures."""
    scenes, results = bootstrap.read_scenes(), read_results(folder / "cells")
    logits = bootstrap.read_test_logits(folder / "cells", results, scenes)
    draws = bootstrap.eer_draws(logits, scenes)
    plot_det(folder / "det.png", scenes.targets, {name: logits[name][0] for name in _SHOWN if name in logits})
    plot_sizes(folder / "eer-bytes.png", [f"distilled-{size}" for size in SIZES], (4, 8, 16), results, draws)
    return {
        "ran": _ran(results),
        "table-1": _table_1(results),
        "table-2": _table_2(results),
        "table-3": _table_3(results),
        "table-4": _table_4(results, "auc", TABLE_4_AUC) + "\n\n" + _table_4(results, "eer", TABLE_4_EER),
        "findings": bootstrap.findings_table(FINDINGS, results, draws),
    }


def _beside(names: Iterable[str]) -> list[str]:
    return [part for name in names for part in (name, "paper")]


def _pairs(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    return [part for pair in zip(ours, theirs) for part in pair]


def _metric(results: Results, name: str, column: str, key: str) -> str:
    seeds = results.get(name, {}).values()
    return spread([result.columns[column][key] for result in seeds]) if seeds else DASH


def _figures(results: Results, name: str) -> list[str]:
    """AUC / EER of each column."""
    if name not in results:
        return [DASH] * len(COLUMNS)
    return [" / ".join(_metric(results, name, column, key) for key in ("auc", "eer")) for column in COLUMNS]


def _costs(results: Results, name: str) -> list[str]:
    """Millions of parameters, MB, billions of multiply-adds: the same for all seeds."""
    if name not in results:
        return [DASH] * 3
    result = next(iter(results[name].values()))
    scaled = (result.parameters, 1e6), (result.bytes, 2**20), (result.multiply_adds, 1e9)
    return [DASH if value is None else f"{value / unit:.2f}" for value, unit in scaled]


def _ran(results: Results) -> str:
    def known(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(str(value or DASH) for value in values))

    rows = []
    for name, seeds in results.items():
        each, fields = list(seeds.values()), ("training_clips", "epochs", "best_epoch")
        facts = [known(getattr(result, field) for result in each) for field in fields]
        teachers = known(", ".join(Path(teacher).name for teacher in result.teachers) for result in each)
        numbers = ", ".join(part.removeprefix("seed") for part in seeds)
        rows.append([name, numbers, *facts, teachers, bootstrap.validation(seeds)])
    return markdown(["model", "seeds", "scenes", "epochs", "best", "teachers", "validation"], rows)


def _table_1(results: Results) -> str:
    dashes, more = [DASH] * len(COLUMNS), [name for name in TABLE_1_MORE if name in results]
    rows = [[label, *_pairs(_figures(results, name), paper)] for name, (label, paper) in TABLE_1.items()]
    rows += [[TABLE_1_MORE[name], *_pairs(_figures(results, name), dashes)] for name in more]
    rows.append(["EfficientAT mn04, zero-shot", *_pairs(MN04, dashes)])
    return markdown(["model", *_beside(COLUMNS)], rows)


def _table_2(results: Results) -> str:
    rows = [[TABLE_1[name][0], *_pairs(_costs(results, name), paper)] for name, paper in TABLE_2.items()]
    return markdown(["model", *_beside(["parameters, M", "MB", "GFLOPs"])], rows)


def _table_3(results: Results) -> str:
    rows = [
        [label, *_pairs([*_figures(results, name), _costs(results, name)[1]], [*paper, size])]
        for name, (label, paper, size) in TABLE_3.items()
    ]
    return markdown(["LSTM, distilled", *_beside([*COLUMNS, "MB"])], rows)


def _table_4(results: Results, key: str, paper: Mapping[int, Sequence[str]]) -> str:
    rows = []
    for size in SIZES:
        ours = [_metric(results, f"distilled-{size}{suffix}", "average", key) for suffix in TABLE_4]
        rows.append([str(size), *_pairs(ours, paper.get(size, [DASH] * len(TABLE_4)))])
    return markdown([f"units, {key.upper()}", *_beside(TABLE_4.values())], rows)
