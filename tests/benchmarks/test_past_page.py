"""The page of the students past the paper, from made-up cells."""

import csv

import matplotlib.figure
import numpy as np
import pytest

from benchmarks import past_page
from benchmarks.bootstrap import average_eer, interval, resample
from benchmarks.past_page import BESIDE, main
from benchmarks.scenes import DRAWS
from benchmarks.standard import EVENTS, Cell, cell_path, write_cell
from qkd_jax.evaluation.metrics import evaluate

SEPARATION = {"tiny": 2.0, "tiny-8": 2.0, "tiny-4": 1.9, "tiny-pm4": 1.0} | dict.fromkeys(BESIDE, 1.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page's lines, the scenes' sources, their targets, the logits by cell, and the figure."""
    folder, rng = tmp_path_factory.mktemp("past"), np.random.default_rng(0)
    targets = (rng.random((300, 3)) < 0.3).astype(np.float32)
    sources = [
        ";".join(f"{event}=fs:{rng.integers(10)}" for event, held in zip(EVENTS, row) if held)
        for row in targets
    ]
    names = [f"{number}.flac" for number in range(300)]
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "labels", "split", "sources"])
        for name, row, source in zip(names, targets, sources):
            labels = ";".join(event for event, held in zip(EVENTS, row) if held)
            writer.writerow([name, labels, "test", source])
    noise, logits = rng.normal(0, 1, targets.shape), {}
    for name, separation in SEPARATION.items():
        values = separation * targets + noise + rng.normal(0, 0.5, noise.shape)
        logits[name] = values.astype(np.float32)
        own = name.startswith("tiny")
        cell = Cell(
            bytes={"tiny": 256_000, "tiny-8": 64_000}.get(name, 32_000) if own else 999_000,
            multiply_adds=None if name == "yamnet" else 80_400_000,
            metrics=evaluate(targets, logits[name], EVENTS),
            valid={"auc": 91.0, "eer": 16.0} if own else None,
        )
        path = cell_path(folder / ("past" if own else "paper"), name, 0)
        write_cell(path, cell, names, EVENTS, logits[name])
    figures, save = [], matplotlib.figure.Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past_page, "CELLS", folder / "paper")
        patch.setattr(
            matplotlib.figure.Figure,
            "savefig",
            lambda self, *rest, **keywords: (figures.append(self), save(self, *rest, **keywords)),
        )
        main(["--data", str(folder), "--cells", str(folder / "past"), "--out", str(folder / "out")])
    (figure,) = figures
    return (folder / "out/tables.md").read_text().splitlines(), sources, targets, logits, figure


def row(lines, label):
    (found,) = [line for line in lines if line.startswith(f"| {label} |")]
    return found.strip("| ").split(" | ")[1:]


def test_each_model_has_its_cost_and_its_figures(made):
    lines, _, targets, logits, _ = made
    found = evaluate(targets, logits["tiny-4"], EVENTS)
    eers = [f"{found[key]['eer']:.2f}" for key in ("average", *EVENTS)]
    auc = f"{found['average']['auc']:.2f}"
    assert row(lines, "tiny-4") == ["32,000", "80", auc, *eers, "91.00 / 16.00", "1"]
    assert row(lines, "YAMNet, zero-shot")[:2] == ["999,000", "–"]
    order = [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")]
    assert order[: order.index("finding")] == [
        "model",
        "---",
        *BESIDE.values(),
        "tiny",
        "tiny-8",
        "tiny-4",
        "tiny-pm4",
    ]


@pytest.mark.parametrize(
    ("label", "small", "against", "start"),
    [
        ("tiny-4 against float", "tiny-4", "tiny", ["+12.3 %", "< +4.0 %"]),
        ("tiny-4 against tiny-pm4", "tiny-4", "tiny-pm4", ["–", "< 0 %"]),
        ("tiny-4 against DenseNet-63", "tiny-4", "teacher", ["+56.0 %", "< +10.0 %"]),
        ("tiny-4 against YAMNet", "tiny-4", "yamnet", ["–", "< 0 %"]),
    ],
)
def test_changes_are_paired_over_the_recordings(made, label, small, against, start):
    lines, sources, targets, logits, _ = made
    weights = resample(sources, DRAWS, 0)
    one, other = (average_eer(targets, logits[name], weights) for name in (small, against))
    low, high = interval(100 * (one / other - 1))
    points = [evaluate(targets, logits[name], EVENTS)["average"]["eer"] for name in (small, against)]
    here = f"{100 * (points[0] / points[1] - 1):+.1f} [{low:+.1f}, {high:+.1f}] %".replace("-", "−")
    assert row(lines, label)[:3] == [*start, here]


def test_what_has_no_cell_has_no_figure(made):
    assert row(made[0], "tiny-2 against float") == ["–", "< +15.0 %", "–", "–"]


def test_a_line_joins_a_student_from_its_fewest_bytes_to_its_most(made):
    (axes,) = made[4].axes
    lines = {line.get_label(): line.get_data() for line in axes.lines}
    sizes, eers = lines["tiny, quantized in training"]
    assert list(sizes) == [32_000, 64_000, 256_000]
    _, _, targets, logits, _ = made
    expected = [
        evaluate(targets, logits[name], EVENTS)["average"]["eer"] for name in ("tiny-4", "tiny-8", "tiny")
    ]
    np.testing.assert_allclose(eers, expected)
