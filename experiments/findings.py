"""Claims about errors, and whether intervals support them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.common import DASH, markdown, signed
from experiments.bootstrap import interval
from experiments.cells import Results
from experiments.scenes import mean_eers


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
