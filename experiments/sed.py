"""Which event happens when: dual distillation (Xiao & Das 2024) and several teachers (Fu et al. 2019)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from benchmarks.common import DASH, EVENTS, markdown, spread
from experiments.cells import Cell, Place, Result, Results, read_results, write_result
from experiments.driver import teaching_logits
from qkd_jax import config as cf
from qkd_jax.config import CRNNConfig, EventRecipe, LSTMConfig, ModelConfig, QuantConfig
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_step_logits
from qkd_jax.distill.objectives import fuse, fusion_weights
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import TITLES
from qkd_jax.evaluation.prediction import make_predict_steps, step_logits
from qkd_jax.evaluation.timed_events import timed_metrics
from qkd_jax.run_folder.folder import load_run

LABELLED = 1000  # clips with onsets and offsets, and as many with labels alone
SE_TEACHER = "teacher-se"
SEVERAL = ("baseline", "teacher-resnet", "teacher-densenet")
_TAGGER = "yamnet_embeddings.toml"
_POOLS = ((2, 2), (2, 2), *[(1, 2)] * 4, (1, 1))


def cells(seed: int) -> list[Cell]:
    """The runs of one seed; teachers come first, since their students learn from their logits."""
    recipe = EventRecipe(
        seed=seed, strong=4, weak=4, unlabelled=4, epochs=16, learning_rate=3e-3, ramp=0.05, ema_decay=0.995
    )

    def crnn(trunk: Any, *channels: int) -> CRNNConfig:
        return CRNNConfig(trunk=trunk, channels=channels, pools=_POOLS, hidden_size=channels[-1], dropout=0.1)

    def cell(
        name: str,
        network: CRNNConfig | LSTMConfig,
        teachers: Sequence[str] = (),
        bits: Sequence[int] = (),
        **objective: Any,
    ) -> Cell:
        files = tuple(f"{teacher}-seed{seed}.npz" for teacher in teachers)
        model = ModelConfig(network=network, teachers=files, objective=cf.EventObjective(**objective))
        on = dataclasses.replace(
            model, start=name, epochs=recipe.epochs // 3, learning_rate=recipe.learning_rate / 3
        )
        models = {name: model} | ({f"{name}-32": on} if bits else {})
        scheme = QuantConfig.integer if isinstance(network, LSTMConfig) else QuantConfig.per_channel
        for each in bits:
            few = dataclasses.replace(network, quant=scheme(each))
            models[f"{name}-{each}"] = dataclasses.replace(on, network=few)
        config = cf.RunConfig(
            name=f"{name}-seed{seed}",
            features=cf.FeatureConfig(n_mels=64, win_length=1024, hop_length=320, n_fft=1024, fmin=0.0),
            data=cf.DESEDData(events=EVENTS, strong=LABELLED, weak=LABELLED),
            augment=cf.AugmentConfig(mixup=0.2, mixup_share=0.5, time_shift=0.1),
            recipe=recipe,
            models=models,
        )
        return Cell(name, config, f"seed{seed}", teaches=name in (SE_TEACHER, *SEVERAL))

    base = (4, 8, 16, 32, 32, 32, 32)
    # A student with a third of the baseline's parameters, and one 50 times smaller than three teachers.
    third, tiny = crnn("se", 4, 8, 16, 16, 16, 16, 16), crnn("separable", 2, 4, 8, 10, 10, 10, 10)
    # One that can be exported as integers: half of the LSTM behind convolutions of preset `small`.
    lstm = LSTMConfig(convolutions=(8, 16, 32, 32), time_strides=2, hidden_size=64, pooling="attention")
    alone: dict[str, Any] = {"consistency_weight": 0.0}
    distilled, few = alone | {"label_weight": 0.1, "teacher_weight": 0.9}, (8, 4)
    return [
        cell("baseline", crnn("gated", *base)),
        cell(SE_TEACHER, crnn("se", *(2 * each for each in base))),
        cell("teacher-resnet", crnn("resnet", *base)),
        cell("teacher-densenet", crnn("densenet", *base)),
        cell("third", third),
        cell("third-cdtd", third, [SE_TEACHER], few),
        cell("third-takd", third, [SE_TEACHER], update="mean_step"),
        cell("third-ema-ste", third, [SE_TEACHER], update="ema_ste"),
        cell("third-eefd", third, embeddings=_TAGGER),
        cell("third-both", third, [SE_TEACHER], few, update="mean_step", embeddings=_TAGGER),
        cell("tiny", tiny, **alone),
        cell("tiny-one", tiny, SEVERAL[:1], **distilled),
        cell("tiny-fused", tiny, SEVERAL, few, **distilled),
        cell("lstm", lstm, **alone),
        cell("lstm-fused", lstm, SEVERAL, few, **distilled),
    ]


def score_fusion(place: Place, cells: Sequence[Cell]) -> None:
    """Keep the result of the three teachers fused on the test clips; they train if their runs are gone."""
    clips, steps, precisions, sizes = [], [], [], []
    for cell in (cell for cell in cells if cell.name in SEVERAL and cell.part == "seed0"):
        file = teaching_logits(f"{cell.name}-seed0.npz", place, cells)
        run = load_run(place.runs / cell.config.name)
        train, test = (load_split(run.config, run.clips, split, run.cache) for split in ("train", "test"))
        network: Any = run.config.models[cell.name].network
        predict, variables = make_predict_steps(run.model(cell.name)), run.best_variables(cell.name)
        clip, of_steps = step_logits(predict, variables, test, run.config.frames, network)
        clips.append(clip)
        steps.append(np.stack(of_steps))
        precisions.append(read_step_logits(file, train.names, EVENTS).precision)
        sizes.append(run.results["models"][cell.name])
    weights = fusion_weights("precision", np.stack(precisions))
    clip, fused = (
        logit(np.clip(fuse(np.stack(logits).astype(np.float64), weights), 1e-12, 1 - 1e-12))
        for logits in (clips, steps)
    )
    metrics, _ = timed_metrics(run.config, network, test, clip, list(fused))
    total = {key: sum(size[key] for size in sizes) for key in ("parameters", "multiply_adds", "bytes")}
    result = Result(metrics=metrics, command=place.command, seed=0, **total)
    write_result(place.path("fusion"), result, test.names, EVENTS, clip)


_KEYS = ("psds1", "psds2", "event_f1", "segment_f1", "intersection_f1", "auc", "eer")
FIGURES = {key: TITLES[key] for key in _KEYS}
FEW = {8: 0.98, 4: 0.94}
"""Bits, and the share of PSDS1 that should remain."""
DUAL = {
    "baseline": "DESED's baseline",
    SE_TEACHER: "the teacher, an SE-CRNN of twice the width",
    "third": "an SE-CRNN of a third of the baseline's parameters, with a mean teacher alone",
    "third-cdtd": "distilled directly (CDTD, the control)",
    "third-takd": "distilled through its mean teacher (TAKD, `mean_step`)",
    "third-ema-ste": "distilled by the gradient at its mean teacher (TAKD, `ema_ste`)",
    "third-eefd": "guided by a tagger's embeddings (EEFD)",
    "third-both": "TAKD and EEFD",
}
MULTI = {
    SEVERAL[0]: "a teacher: gated units, DESED's baseline",
    SEVERAL[1]: "a teacher: ResNet blocks",
    SEVERAL[2]: "a teacher: DenseNet blocks",
    "fusion": "the three together, weighted per event",
    "tiny": "the student, separable blocks, from the labels alone",
    "tiny-one": "the student, distilled from the first",
    "tiny-fused": "the student, distilled from the three",
    "lstm": "a student that exports as integers, an LSTM behind convolutions, from the labels alone",
    "lstm-fused": "the LSTM, distilled from the three",
}


def parts(folder: Path) -> dict[str, str]:
    """The marked parts of the page, from the results in `folder`/cells."""
    return tables(read_results(folder / "cells"))


def tables(results: Results) -> dict[str, str]:
    """The tables, with models that have no results named below.

    Raises InputError if batches differ between results, which would not compare.
    """
    every = [result for parts in results.values() for result in parts.values()]
    batches = {tuple(result.batch) for result in every if result.batch}
    if len(batches) > 1:
        raise InputError(f"cells: expected one size of batches, found {sorted(batches)}")
    seeds = {name: list(parts.values()) for name, parts in results.items()}
    return {
        "dual": _comparison(seeds, DUAL),
        "several": _comparison(seeds, MULTI),
        "bits": _few_bits(seeds),
        "ratios": _ratios(seeds),
        "goals": _goals(seeds),
        "behind": _behind(seeds),
    }


Seeds = dict[str, list[Result]]


def _comparison(seeds: Seeds, models: dict[str, str]) -> str:
    rows = [[name, what, *_row(seeds[name])] for name, what in models.items() if name in seeds]
    table = markdown(["model", "what", "parameters", *FIGURES.values()], rows)
    missing = [f"`{name}`" for name in models if name not in seeds]
    return f"{table}\n\nNot trained yet: {', '.join(missing)}." if missing else table


def _row(seeds: Sequence[Result]) -> list[str]:
    averages = [result.metrics["average"] for result in seeds]
    return [f"{seeds[0].parameters:,}", *(spread([each[key] for each in averages]) for key in FIGURES)]


def _mean(seeds: Sequence[Result], figure: str) -> float:
    return float(np.mean([result.metrics["average"][figure] for result in seeds]))


def _few_bits(seeds: Seeds) -> str:
    few = [name for name in seeds if name.endswith(tuple(f"-{bits}" for bits in (32, *FEW)))]
    rows = [[name, f"{seeds[name][0].bytes:,}", *_row(seeds[name]), _loss(seeds, name)] for name in few]
    return markdown(["model", "bytes", "parameters", *FIGURES.values(), "PSDS1 lost"], rows)


def _loss(seeds: Seeds, name: str) -> str:
    before = seeds.get(f"{name.rpartition('-')[0]}-32")
    if not before or name.endswith("-32"):
        return DASH
    lost = 100 * (1 - _mean(seeds[name], "psds1") / _mean(before, "psds1"))
    return f"{round(lost)} %"


def _ratios(seeds: Seeds) -> str:
    """How many times smaller each student is than each teacher of its comparison, and than all."""
    rows = []
    for student, teachers in {"third": (SE_TEACHER,), "tiny": SEVERAL, "lstm": SEVERAL}.items():
        if not seeds.keys() >= set(teachers):
            continue
        sizes = [seeds[name][0].bytes for name in teachers]
        for name in (name for name in seeds if name.startswith(student)):
            size = seeds[name][0].bytes
            each = ", ".join(f"{teacher / size:.1f}" for teacher in sizes)
            rows.append([name, f"{size:,}", ", ".join(teachers), each, f"{sum(sizes) / size:.0f}"])
    return markdown(["student", "bytes", "against", "times smaller than each", "than all"], rows)


def _goals(seeds: Seeds) -> str:
    """The goals, and whether they were met."""
    both, psds = "third-both", ("psds1", "psds2")
    goals: list[tuple[str, str, tuple[str, ...], float, tuple[str, ...]]] = [
        (f"{both} beats the baseline in PSDS1 and PSDS2", both, ("baseline",), 1.0, psds)
    ]
    for name in ("tiny-fused", "lstm-fused"):
        goal = f"{name} is no worse than its teachers' average in PSDS1 and PSDS2"
        goals.append((goal, name, SEVERAL, 1.0, psds))
    for name in (both, "third-cdtd", "tiny-fused", "lstm-fused"):
        for bits, least in FEW.items():
            goal = f"{name} at {bits} bits loses at most {100 * (1 - least):.0f} % of PSDS1"
            goals.append((goal, f"{name}-{bits}", (f"{name}-32",), least, psds[:1]))
    rows = []
    for goal, name, others, least, figures in goals:
        if not seeds.keys() >= {name, *others}:
            rows.append([goal, DASH, DASH, "not trained yet"])
            continue
        ours = [_mean(seeds[name], figure) for figure in figures]
        theirs = [float(np.mean([_mean(seeds[other], figure) for other in others])) for figure in figures]
        met = all(one >= least * other for one, other in zip(ours, theirs))
        pair = [" / ".join(f"{value:.2f}" for value in values) for values in (ours, theirs)]
        rows.append([goal, *pair, "met" if met else "missed"])
    return markdown(["goal", "result", "against", ""], rows)


def _behind(seeds: Seeds) -> str:
    """What the averages hide: validation, which chose the best epoch, and PSDS1 of each event."""
    columns = {"psds1": "PSDS1", "psds2": "PSDS2", "auc": "AUC"}
    rows = []
    for name, results in seeds.items():
        valid = [result.valid for result in results if result.valid]
        if valid:
            chosen = [spread([each[key] for each in valid]) for key in columns]
            events = [spread([result.columns[event]["psds1"] for result in results]) for event in EVENTS]
            rows.append([name, *chosen, *events])
    header = ["model", *(f"{label}, validation" for label in columns.values())]
    return markdown([*header, *(f"PSDS1 of {event}, test" for event in EVENTS)], rows)
