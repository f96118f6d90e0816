"""Past the paper: convolutions in front of the LSTM, 8 to 2 bits, a tagger as teacher, 12,000 scenes.

A first float student learns from the tagger and the labels.  All others start from its best state, in float
and at each number of bits, by the same recipe, with the mean of its logits and the tagger's as teacher.
"""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.common import DASH, EVENTS, markdown, spread
from experiments import bootstrap, paper
from experiments.bootstrap import Finding, change
from experiments.cells import Cell, Results, read_results
from experiments.plots import plot_sizes
from qkd_jax.config import ClipRecipe, LSTMConfig, ManifestData, ModelConfig, QuantConfig, RunConfig

NETWORK = LSTMConfig(convolutions=(16, 32, 64, 64), time_strides=3, hidden_size=128, pooling="attention")
BITS = (8, 4, 3, 2)
SCHEMES: dict[str, QuantConfig] = {
    **{str(bits): QuantConfig.per_channel(bits) for bits in BITS},
    "2w4": dataclasses.replace(QuantConfig.per_channel(4), weights=2),
    **{f"integer-{bits}": QuantConfig.integer(bits) for bits in BITS},
}
_TAGGER = "yamnet.toml"


def cells(seed: int) -> list[Cell]:
    """The runs of one seed: each trains the first student, to stay within 75 minutes."""
    integer = tuple(f"integer-{bits}" for bits in BITS)
    kinds = {"": ("", "8", "4"), "-few": ("3", "2", "2w4"), "-integer": integer}
    return [_cell(f"conv-128{kind}", schemes, seed) for kind, schemes in kinds.items()]


def _cell(name: str, schemes: tuple[str, ...], seed: int) -> Cell:
    base, first = "conv-128", "conv-128-first"
    further: dict[str, Any] = {
        "teachers": (first, _TAGGER),
        "start": first,
        "learning_rate": 1e-3,
        "epochs": 2,
    }
    models = {first: ModelConfig(network=NETWORK, teachers=(_TAGGER,), epochs=8)}
    for scheme in schemes:
        network = NETWORK.quantized(SCHEMES[scheme]) if scheme else NETWORK
        models[f"{base}-{scheme}".rstrip("-")] = ModelConfig(network=network, **further)
    # The integer-only scheme can't be applied after training: it has no calibrated scales then.
    after = {
        f"{base}-pm{scheme}": (base, NETWORK.quantized(quant))
        for scheme, quant in SCHEMES.items()
        if quant.scheme == "paper" and "" in schemes
    }
    data, recipe = ManifestData(events=EVENTS, manifest="more.csv"), ClipRecipe(seed=seed)
    config = RunConfig(name=f"{name}-seed{seed}", data=data, recipe=recipe, models=models)
    return Cell(name, config, f"seed{seed}", unkept=(first,), quantized=after)


BESIDE = {
    "teacher": "DenseNet-63",
    "yamnet": "YAMNet, zero-shot",
    "distilled-256": "the paper's student",
    "distilled-256-4": "the paper's student, 4 bits",
}
# Largest relative increase of EER over float that is allowed at each number of bits; 2 % counts as no worse.
MARGINS = {"8": 2, "4": 4, "3": 8, "2w4": 15, "2": 15}
PAPER = {"8": ("+4.7 %", "+45.5 %"), "4": ("+12.3 %", "+56.0 %")}  # against float, against its DenseNet-63


def findings(student: str) -> list[Finding]:
    """What is claimed of the float `student` at each number of bits."""
    claims = []
    for bits, margin in MARGINS.items():
        small, later = f"{student}-{bits}", f"{student}-pm{bits}"
        against_float, against_teacher = PAPER.get(bits, (DASH, DASH))
        claims += [
            Finding(f"{small} against float", against_float, change(small, student), "<", margin),
            Finding(f"{small} against {later}", DASH, change(small, later), "<"),
            Finding(f"{small} against DenseNet-63", against_teacher, change(small, "teacher"), "<", 10),
            Finding(f"{small} against YAMNet", DASH, change(small, "yamnet"), "<"),
        ]
    for bits in map(str, BITS):
        integer = f"{student}-integer-{bits}"
        claims += [
            Finding(f"{integer} against float", DASH, change(integer, student), "<", MARGINS[bits]),
            Finding(f"{integer} against {student}-{bits}", DASH, change(integer, f"{student}-{bits}"), "<"),
            Finding(f"{integer} against YAMNet", DASH, change(integer, "yamnet"), "<"),
        ]
    return claims


def table(results: Results) -> str:
    """A row per model: bytes, multiply-adds, AUC and EER, EER of each event, validation."""
    rows = []
    for name, seeds in results.items():
        each = list(seeds.values())
        one = each[0]
        work = DASH if one.multiply_adds is None else f"{one.multiply_adds / 1e6:,.0f}"
        columns = ("average", "auc"), ("average", "eer"), *((event, "eer") for event in EVENTS)
        figures = [spread([result.columns[column][key] for result in each]) for column, key in columns]
        title = BESIDE.get(name, name)
        rows.append([title, f"{one.bytes:,}", work, *figures, bootstrap.validation(seeds), str(len(each))])
    header = ["model", "bytes", "multiply-adds, M", "AUC", "EER", *EVENTS, "validation", "seeds"]
    return markdown(header, rows)


def parts(folder: Path, beside: Path = paper.CELLS) -> dict[str, str]:
    """The marked parts of the page, from the results in `folder`/cells and `beside`; draws eer-bytes.png."""
    scenes, own, others = bootstrap.read_scenes(), read_results(folder / "cells"), read_results(beside)
    others = {name: others[name] for name in BESIDE}
    logits = bootstrap.read_test_logits(beside, others, scenes) | bootstrap.read_test_logits(
        folder / "cells", own, scenes
    )
    draws = bootstrap.eer_draws(logits, scenes)
    students = [name for name in own if f"{name}-pm4" in own]
    order = {
        name: own[name]
        for student in students
        for name in (student, *(f"{student}{kind}{n}" for kind in ("-", "-pm", "-integer-") for n in MARGINS))
        if name in own
    }
    results = others | order
    plot_sizes(folder / "eer-bytes.png", students, tuple(MARGINS), results, draws)
    claims = [claim for name in students for claim in findings(name)]
    return {"table": table(results), "findings": bootstrap.findings_table(claims, results, draws)}
