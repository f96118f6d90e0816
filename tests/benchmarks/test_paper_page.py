"""The page from made-up cells: its numbers, verdicts and pictures, with some cells missing."""

import csv
import hashlib
import itertools
import subprocess
import sys

import matplotlib.figure
import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.bootstrap import average_eer, interval, resample
from benchmarks.findings import verdict
from benchmarks.paper_page import FINDINGS, TABLE_1, TABLE_3, main
from benchmarks.scenes import DRAWS
from benchmarks.standard import CELLS, EVENTS, Cell, cell_path, read_cells, write_cell
from qkd_jax.commands.cli import run_command
from qkd_jax.evaluation.metrics import evaluate

# Separation of positives from negatives, and bytes; seeds 0 and 1 of the distilled student.
MODELS = {
    "teacher": (3.0, 9_000_000),
    "plain-256": (1.0, 1_300_000),
    "distilled-256": (2.0, 1_300_000),
    "distilled-256-4": (1.9, 170_000),
    "distilled-256-pm4": (0.8, 170_000),
    "distilled-64": (1.5, 130_000),
    "yamnet": (2.5, 15_000_000),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with the page, the scenes' rows, their targets, and the logits by cell and seed."""
    folder, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    rows = []
    for number in range(300):
        labels = [event for event in EVENTS if rng.random() < 0.3]
        sources = ";".join(f"{event}=fs:{rng.integers(10)}" for event in labels)
        rows.append({"filename": f"{number}.flac", "labels": ";".join(labels), "sources": sources})
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["filename", "labels", "split", "sources"])
        writer.writeheader()
        writer.writerow({"filename": "train.flac", "labels": "dog", "split": "train", "sources": "dog=fs:99"})
        writer.writerows(row | {"split": "test"} for row in rows)
    targets = np.array([[event in row["labels"] for event in EVENTS] for row in rows], np.float32)
    noise = rng.normal(0, 1, (300, 3))
    logits = {}
    for name, (separation, size) in MODELS.items():
        for seed in range(2 if name == "distilled-256" else 1):
            values = separation * targets + noise + rng.normal(0, 0.5, noise.shape)
            logits[name, seed] = values = values.astype(np.float32)
            trained = {
                "valid": {"auc": 80.0 + seed, "eer": 20.0},
                "best_epoch": 3,
                "epochs": 12,
                "scenes": 3000,
            }
            cell = Cell(
                bytes=size,
                parameters=size // 4,
                multiply_adds=327_000_000,
                metrics=evaluate(targets, values, EVENTS),
                teacher="teacher-seed0.npz" if name.startswith("distilled") else "",
                **({} if name == "yamnet" else trained),
            )
            # In another order than the manifest's.
            names = [row["filename"] for row in rows][::-1]
            write_cell(cell_path(folder / "cells", name, seed), cell, names, EVENTS, values[::-1])
    return folder, rows, targets, logits


@pytest.fixture(scope="module")
def written(made):
    """The page's lines, and its two figures as matplotlib has them."""
    folder, figures = made[0], []
    save = matplotlib.figure.Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            matplotlib.figure.Figure,
            "savefig",
            lambda self, *rest, **keywords: (figures.append(self), save(self, *rest, **keywords)),
        )
        main(["--data", str(folder), "--cells", str(folder / "cells"), "--out", str(folder / "out")])
    return (folder / "out/tables.md").read_text().splitlines(), *figures


def row(lines, label, number=0):
    """The cells of the `number`th table row that begins with `label`."""
    found = [line for line in lines if line.startswith(f"| {label} |")]
    return found[number].strip("| ").split(" | ")[1:]


def test_the_tables_hold_what_follows_from_the_logits(made, written):
    _, _, targets, logits = made
    lines = written[0]
    plain = evaluate(targets, logits["plain-256", 0], EVENTS)
    ours = [f"{plain[key]['auc']:.2f} / {plain[key]['eer']:.2f}" for key in ("average", *EVENTS)]
    found = row(lines, "LSTM, 1 layer")
    assert found[::2] == ours
    assert found[1::2] == ["92.10 / 15.08", "91.35 / 16.60", "92.09 / 15.58", "92.86 / 13.07"]
    pair = [evaluate(targets, logits["distilled-256", seed], EVENTS)["average"] for seed in (0, 1)]
    both = " / ".join(
        f"{(pair[0][key] + pair[1][key]) / 2:.2f} ± {abs(pair[0][key] - pair[1][key]) / 2:.2f}"
        for key in ("auc", "eer")
    )
    assert row(lines, "LSTM, 1 layer, distilled")[0] == row(lines, "float")[0] == both
    assert row(lines, "256")[0] == both.split(" / ")[0]
    assert row(lines, "256", 1)[0] == both.split(" / ")[1]
    assert row(lines, "LSTM, 1 layer", 1) == ["0.33", "0.33", "1.24", "1.26", "0.33", "0.32"]
    small = evaluate(targets, logits["distilled-64", 0], EVENTS)["average"]
    assert row(lines, "64", 1)[0] == f"{small['eer']:.2f}"
    assert row(lines, "distilled-256") == [
        "0, 1",
        "3000",
        "12",
        "3",
        "teacher-seed0.npz",
        "80.50 ± 0.50 / 20.00 ± 0.00",
    ]
    assert row(lines, "yamnet") == ["0", "–", "–", "–", "–", "–"]


def test_missing_cells_are_dashes_and_rows_beside_the_papers_are_only_there_with_their_cells(written):
    lines = written[0]
    assert row(lines, "LSTM, 3 layers")[::2] == ["–"] * 4
    assert row(lines, "LSTM, 3 layers", 1)[::2] == ["–"] * 3
    assert row(lines, "8 bits")[::2] == ["–"] * 5
    assert row(lines, "128")[::2] == ["–"] * 5
    assert row(lines, "8 bits against float") == ["+4.7 %", "< +10.0 %", "–", "–"]
    assert row(lines, "YAMNet, zero-shot")[0] != "–"
    assert not [line for line in lines if line.startswith("| the same from")]


def test_changes_and_intervals_are_those_of_the_draws(made, written):
    folder, rows, targets, logits = made
    weights = resample([item["sources"] for item in rows], DRAWS, 0)
    draws = {key: average_eer(targets, values, weights) for key, values in logits.items()}
    points = {key: evaluate(targets, values, EVENTS)["average"]["eer"] for key, values in logits.items()}
    for table in (draws, points):
        table["both"] = (table["distilled-256", 0] + table["distilled-256", 1]) / 2
    cases = {
        "distilled against plain": ("both", ("plain-256", 0), "< 0 %", "holds"),
        "4 bits PM against 4 bits": (("distilled-256-pm4", 0), ("distilled-256-4", 0), "> 0 %", "holds"),
        "4 bits against DenseNet-63": (("distilled-256-4", 0), ("teacher", 0), "< +56.0 %", "doesn't"),
    }
    for label, (ours, against, claim, outcome) in cases.items():
        point = 100 * (points[ours] - points[against]) / points[against]
        low, high = interval(100 * (draws[ours] - draws[against]) / draws[against])
        here = f"{point:+.1f} [{low:+.1f}, {high:+.1f}] %".replace("-", "−")
        assert row(written[0], label)[1:] == [claim, here, outcome]
    digest = hashlib.sha256((folder / "metadata.csv").read_bytes()).hexdigest()
    text = " ".join(written[0])
    assert f"300 test scenes of a metadata.csv of SHA-256 {digest[:16]}…" in text
    assert "resample the 30 recordings" in text


def test_a_model_against_itself_has_not_changed_and_nothing_can_be_told(made, tmp_path):
    folder = made[0]
    (plain,) = read_cells(folder / "cells")["plain-256"].values()
    names = [item["filename"] for item in made[1]]
    for name in ("plain-256", "distilled-256"):
        write_cell(cell_path(tmp_path, name, 0), plain, names, EVENTS, made[3]["plain-256", 0])
    main(["--data", str(folder), "--cells", str(tmp_path), "--out", str(tmp_path)])
    lines = (tmp_path / "tables.md").read_text().splitlines()
    assert row(lines, "distilled against plain") == ["−26.0 %", "< 0 %", "0 [0, 0] %", "can't be told"]


@pytest.mark.parametrize(
    ("low", "high", "sign", "bound", "expected"),
    [
        (-3.0, -1.0, "<", 0.0, "holds"),
        (1.0, 3.0, "<", 0.0, "doesn't"),
        (-1.0, 1.0, "<", 0.0, "can't be told"),
        (1.0, 3.0, ">", 0.0, "holds"),
        (-3.0, -1.0, ">", 0.0, "doesn't"),
        (-1.0, 0.0, ">", 0.0, "can't be told"),
        (2.0, 9.9, "<", 10.0, "holds"),
        (2.0, 10.1, "<", 10.0, "can't be told"),
        (20.1, 30.0, ">", 20.0, "holds"),
    ],
)
def test_verdicts(low, high, sign, bound, expected):
    assert verdict(low, high, sign, bound) == expected


def test_the_papers_changes_follow_from_its_tables():
    rows = {name: values for name, (_, values) in TABLE_1.items()}
    rows |= {name: values for name, (_, values, _) in TABLE_3.items() if "/" in values[0]}
    eer = {name: float(values[0].split(" / ")[1]) for name, values in rows.items()}
    for values in rows.values():  # its averages too, but for one of AUC
        for average, *each in zip(*(map(float, value.split(" / ")) for value in values)):
            assert average == pytest.approx(np.mean(each), abs=0.011) or average == 93.87
    # Its text: 5.7 and 27.0 % for post-mortem, and at 8 bits gaps of 1.1 and 8.5 points.
    eer |= {
        "distilled-256-pm8": 1.057 * eer["distilled-256"],
        "distilled-256-pm4": 1.27 * eer["distilled-256"],
    }
    eer |= {"distilled-64": 1.0, "distilled-64-8": 1.0, "distilled-64-pm8": 1.085}
    checked = 0
    for finding in FINDINGS:
        if finding.paper == "grows":
            continue
        figure, _ = finding.paper.replace("−", "-").split()
        assert finding.figure(eer) == pytest.approx(float(figure), abs=0.16), finding.text
        assert (
            verdict(finding.figure(eer) - 1e-9, finding.figure(eer), finding.sign, finding.bound + 0.2)
            == "holds"
        )
        checked += 1
    assert checked == len(FINDINGS) - 1


def test_det_curves_cross_the_diagonal_at_the_eer(made, written):
    _, _, targets, logits = made
    figure = written[1]
    for axes, event in zip(figure.axes, EVENTS, strict=True):
        assert axes.get_title() == event
        curves = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(curves) == ["teacher", "plain-256", "distilled-256", "distilled-256-4", "yamnet"]
        for name, line in curves.items():
            false_positive, false_negative = norm.cdf(line.get_data())
            gap = false_positive - false_negative
            crossing = np.interp(
                0, *(values[np.argsort(gap, kind="stable")] for values in (gap, false_positive))
            )
            assert 100 * crossing == pytest.approx(evaluate(targets, logits[name, 0], EVENTS)[event]["eer"])


def test_errors_stand_at_their_bytes_with_their_intervals(made, written):
    _, rows, targets, logits = made
    (axes,) = written[2].axes
    weights = resample([item["sources"] for item in rows], DRAWS, 0)
    points = sorted((x, y) for line in axes.lines for x, y in zip(*line.get_data()))
    bars = sorted(tuple(map(tuple, bar)) for lines in axes.collections for bar in lines.get_segments())
    expected = []
    for name, (_, size) in MODELS.items():
        seeds = [values for (model, _), values in logits.items() if model == name]
        eer = np.mean([evaluate(targets, values, EVENTS)["average"]["eer"] for values in seeds])
        bounds = interval(np.mean([average_eer(targets, values, weights) for values in seeds], axis=0))
        expected.append((size, eer, bounds))
    assert len(points) == len(bars) == len(expected)
    # A few per cent to the side, so that none covers another.
    matched = sorted(
        expected, key=lambda item: min(point[0] for point in points if point[1] == pytest.approx(item[1]))
    )
    for (x, y), bar, (size, eer, bounds) in zip(points, bars, matched):
        assert x == pytest.approx(size, rel=0.07)
        assert y == pytest.approx(eer)
        assert bar == (pytest.approx((x, bounds[0])), pytest.approx((x, bounds[1])))
    assert all(one != other for (one, _), (other, _) in itertools.pairwise(points))
    assert axes.get_xscale() == "log"


def test_the_page_needs_no_jax():
    code = (
        "import sys, benchmarks.paper_page; print([name for name in ('jax', 'flax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_says_what_it_lacks(made, tmp_path, capsys):
    assert run_command(main, ["--data", str(tmp_path)]) == 2
    assert "error: --data: expected a table at " in capsys.readouterr().err
    assert run_command(main, ["--data", str(made[0]), "--cells", str(tmp_path)]) == 2
    assert f"expected cells of benchmarks.paper_tables, found none in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "tables.md").exists()


def test_the_committed_cells_are_whole():
    cells = read_cells(CELLS)
    assert {"teacher", "plain-256", "distilled-256"} <= set(cells)
    for name, seeds in cells.items():
        for seed in seeds:
            with np.load(cell_path(CELLS, name, seed).with_suffix(".npz")) as file:
                assert file["events"].tolist() == list(EVENTS)
                assert len(set(file["names"].tolist())) == (7000 if name == "teacher" else 3000)
                assert file["logits"].shape == (len(file["names"]), 3) and np.isfinite(file["logits"]).all()
