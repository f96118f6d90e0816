"""Claims about relative errors, and what intervals say of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.bootstrap import interval
from benchmarks.scenes import Cells, mean_eers
from benchmarks.text import DASH, markdown, signed


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim: a figure of the cells' EERs is below, or above, a bound."""

    text: str
    paper: str
    """The paper's figure, or what else stands beside ours."""
    figure: Callable[[Mapping[str, Any]], Any]
    """From each cell's average EER, one number or one a draw."""
    sign: Literal["<", ">"]
    bound: float = 0.0
    unit: str = "%"


def change(cell: str, against: str) -> Callable[[Mapping[str, Any]], Any]:
    """The relative change of EER, in percent."""
    return lambda eer: 100 * (eer[cell] / eer[against] - 1)


def verdict(low: float, high: float, sign: Literal["<", ">"], bound: float) -> str:
    """What the interval says of the claim that a figure is `sign` `bound`."""
    if low <= bound <= high:
        return "can't be told"
    return "holds" if (high < bound) == (sign == "<") else "doesn't"


def findings_table(findings: Sequence[Finding], cells: Cells, draws: Mapping[str, np.ndarray]) -> str:
    """Each claim, our figure with its 95 % interval over `draws`, and the verdict; dashes for what lacks."""
    points = mean_eers(cells)
    rows = []
    for finding in findings:
        claim = f"{finding.sign} {signed(finding.bound)} {finding.unit}"
        row = [finding.text, finding.paper, claim]
        try:
            point, (low, high) = finding.figure(points), interval(finding.figure(draws))
        except KeyError:  # a cell that is not there
            rows.append([*row, DASH, DASH])
            continue
        here = f"{signed(point)} [{signed(low)}, {signed(high)}] {finding.unit}"
        rows.append([*row, here, verdict(low, high, finding.sign, finding.bound)])
    return markdown(["finding", "paper", "claim", "here", "verdict"], rows)
