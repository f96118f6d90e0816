"""Errors on the test scenes of the standard set: intervals over their recordings, and claims about them."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.common import DASH, EVENTS, RESULTS, markdown, signed, spread
from experiments.cells import Result, Results
from qkd_jax.data.arrays import read_npz
from qkd_jax.data.logits import read_logits

DRAWS = 1000
SCENES = RESULTS / "standard-test.npz"
"""Names, labels and sources of the test scenes, from the standard set's metadata.csv."""


def resample(sources: Sequence[str], draws: int, seed: int) -> np.ndarray:
    """How often each draw takes each scene: float64 [draws, scenes], 1 on average.

    `sources` holds the recordings in each scene, EVENT=RECORDING separated by `;`.  A draw takes as many
    recordings of an event as there are, with replacement, and a scene as often as the product of the counts
    of its recordings: the pigeonhole bootstrap (Owen 2007; Owen and Eckles 2012 for more than two events).
    With a dozen recordings its 95 % intervals are too narrow: in simulations they contained the truth in
    91 of 100 cases, where intervals over scenes did in 62.  Scenes without recordings are resampled among
    each other, as if each were the one recording of an event of their own.
    """
    scenes: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for scene, text in enumerate(sources):
        # Not a set: its order would change from process to process, and the draws with it.
        for recording in dict.fromkeys(text.split(";")) if text else (f"={scene}",):
            scenes[recording.split("=")[0]][recording].append(scene)
    rng = np.random.default_rng(seed)
    weights = np.ones((draws, len(sources)))
    for recordings in scenes.values():
        count = len(recordings)
        taken = rng.multinomial(count, np.full(count, 1 / count), draws)
        for times, members in zip(taken.T, recordings.values()):
            weights[:, members] *= times[:, None]
    return weights


def average_eer(targets: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over events of the EER on weighted scenes, in percent: [draws].

    `targets` (0 or 1) and `logits` are [scenes, events], `weights` [draws, scenes].  With weights of 1 this
    is the average EER of `qkd_jax.evaluate`.
    """
    events = zip(targets.T, logits.T)
    return 100 * np.mean([_eer(truth == 1, scores, weights) for truth, scores in events], axis=0)


def _eer(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """EER in [0, 1] of each draw, defined as in `qkd_jax.evaluation.metrics.eer`; `truth` is bool.

    One sort serves all draws: computing scikit-learn's curve for each takes several times as long.
    """
    order = np.argsort(-scores)
    scores, truth, weights = scores[order], truth[order], weights[:, order]
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # of runs of equal scores

    def rates(chosen: np.ndarray) -> np.ndarray:
        mass = np.cumsum(weights * chosen, axis=1)[:, ends]
        return np.pad(mass / mass[:, -1:], ((0, 0), (1, 0)))  # above the highest score nothing is detected

    false_positive = rates(~truth)
    gap = 1 - rates(truth) - false_positive  # falls from 1 to -1; the EER is where it crosses 0
    after = np.argmax(gap <= 0, axis=1)
    draws = np.arange(len(weights))
    share = gap[draws, after - 1] / (gap[draws, after - 1] - gap[draws, after])
    below, above = false_positive[draws, after - 1], false_positive[draws, after]
    return below + share * (above - below)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of `values` [draws]."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The test scenes: `names`, `targets` [scenes, events], and `sources` as `resample` takes them."""

    names: list[str]
    targets: np.ndarray
    sources: list[str]


def read_scenes(path: Path = SCENES) -> Scenes:
    """The test scenes that are kept at `path`."""
    text = ("U", 1)
    names, labels, sources = read_npz(path, "test scenes", names=text, labels=text, sources=text)
    targets = np.array([[event in each.split(";") for event in EVENTS] for each in labels], np.float32)
    return Scenes(names.tolist(), targets, sources.tolist())


def read_test_logits(folder: Path, results: Results, scenes: Scenes) -> dict[str, list[np.ndarray]]:
    """The logits of each result on the test scenes, [scenes, events] for each seed."""
    return {
        name: [read_logits(folder / f"{name}-{part}.npz", scenes.names, EVENTS) for part in parts]
        for name, parts in results.items()
    }


def eer_draws(logits: Mapping[str, Sequence[np.ndarray]], scenes: Scenes) -> dict[str, np.ndarray]:
    """The average EER in percent of each model, the mean over seeds, [draws]; all share the same draws."""
    weights = resample(scenes.sources, DRAWS, 0)
    return {
        name: np.mean([average_eer(scenes.targets, values, weights) for values in seeds], axis=0)
        for name, seeds in logits.items()
    }


def validation(parts: Mapping[str, Result]) -> str:
    """AUC / EER on validation over the trained seeds of a model; a dash if there are none."""
    trained = [result.valid for result in parts.values() if result.valid]
    return " / ".join(spread([row[key] for row in trained]) for key in ("auc", "eer") if trained) or DASH


def averages(results: Iterable[Result], *keys: str) -> list[str]:
    """The averages over events of each figure on the test, the mean over seeds ± half their range."""
    values = [result.metrics["average"] for result in results]
    return [spread([each[key] for each in values]) for key in keys]


def mean_eers(results: Results) -> dict[str, float]:
    """The average EER of each model, the mean over seeds."""
    return {
        name: float(np.mean([result.metrics["average"]["eer"] for result in parts.values()]))
        for name, parts in results.items()
    }


@dataclasses.dataclass(frozen=True)
class Finding:
    """The claim that a figure computed from EERs is below, or above, a bound."""

    text: str
    paper: str
    """The paper's figure."""
    figure: Callable[[Mapping[str, Any]], Any]
    """From the average EER of each model, one number or one per draw."""
    sign: Literal["<", ">"]
    bound: float = 0.0
    unit: str = "%"


def change(model: str, against: str) -> Callable[[Mapping[str, Any]], Any]:
    """The relative change of EER, in percent."""
    return lambda eer: 100 * (eer[model] / eer[against] - 1)


def verdict(low: float, high: float, sign: Literal["<", ">"], bound: float) -> str:
    """Whether the interval supports the claim that a figure is `sign` `bound`.

    >>> verdict(-3.0, -1.0, "<", 0.0), verdict(-3.0, 1.0, "<", 0.0), verdict(2.0, 3.0, "<", 0.0)
    ('holds', 'undecided', "doesn't hold")
    """
    if low <= bound <= high:
        return "undecided"
    return "holds" if (high < bound) == (sign == "<") else "doesn't hold"


def findings_table(findings: Sequence[Finding], results: Results, draws: Mapping[str, np.ndarray]) -> str:
    """Each claim, our figure with its 95 % interval over `draws`, and the verdict; dashes if models lack."""
    points = mean_eers(results)
    rows = []
    for finding in findings:
        claim = f"{finding.sign} {signed(finding.bound)} {finding.unit}"
        row = [finding.text, finding.paper, claim]
        try:
            point, (low, high) = finding.figure(points), interval(finding.figure(draws))
        except KeyError:  # a model without results
            rows.append([*row, DASH, DASH])
            continue
        here = f"{signed(point)} [{signed(low)}, {signed(high)}] {finding.unit}"
        rows.append([*row, here, verdict(low, high, finding.sign, finding.bound)])
    return markdown(["finding", "paper", "claim", "here", "verdict"], rows)
