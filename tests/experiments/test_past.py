"""Students past the paper: their runs, and the page from made-up results."""

import jax
import numpy as np
import pytest

from benchmarks.common import EVENTS
from experiments import past, scenes
from experiments.bootstrap import average_eer, interval, resample
from experiments.past import BESIDE, NETWORKS
from experiments.scenes import DRAWS
from qkd_jax.config import QuantConfig
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.models.build import build_model
from tests.experiments.results import make, row, write

SEPARATIONS = {"tiny": 2.0, "tiny-8": 2.0, "tiny-4": 1.9, "tiny-pm4": 1.0} | dict.fromkeys(BESIDE, 1.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("past")
    made = make(folder, SEPARATIONS)
    for name in SEPARATIONS:
        own = name.startswith("tiny")
        size = {"tiny": 256_000, "tiny-8": 64_000}.get(name, 32_000) if own else 999_000
        valid = {"auc": 91.0, "eer": 16.0} if own else None
        work = None if name == "yamnet" else 80_400_000
        path = folder / ("own/cells" if own else "paper")
        write(made, path, name, bytes=size, multiply_adds=work, valid=valid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes.read_scenes, "__defaults__", (made.scenes,))
        return made, past.parts(folder / "own", folder / "paper")


def test_each_run_trains_the_first_student_and_starts_all_others_from_it():
    cells = past.cells(0)
    assert sum((cell.results for cell in cells), ()) and len({n for c in cells for n in c.results}) == 30
    for cell in cells:
        first, *others = cell.config.models
        assert first not in cell.results and cell.config.models[first].epochs == 8 and others
        assert cell.config.models[first].teachers == ("yamnet.toml",)
        for name in others:
            model = cell.config.models[name]
            assert (model.start, model.teachers) == (first, (first, "yamnet.toml"))
            assert (model.learning_rate, model.epochs) == (1e-3, 2)
    mixed, four = (past.SCHEMES[name] for name in ("2w4", "4"))
    assert vars(mixed) == vars(four) | {"weights": 2}


def test_all_is_set_to_the_same_bits_and_4_of_them_are_small():
    for bits in past.BITS:
        quant = vars(QuantConfig.per_channel(bits))
        other = {name: value for name, value in quant.items() if value != bits}
        assert other == {"scheme": "paper", "cell": 16, "ranges": "channel"}
    for network in NETWORKS.values():
        model = build_model(network, 3)
        features = jax.ShapeDtypeStruct((1, 998, 64), "float32")
        variables = jax.eval_shape(model.init, jax.random.key(0), features)
        assert model_cost(model, variables, (998, 64), QuantConfig.per_channel(4))["bytes"] < 182_000


def test_each_model_has_its_cost_and_its_figures(made):
    made, parts = made
    metrics = evaluate(made.targets, made.logits["tiny-4", 0].astype(np.float32), EVENTS)
    eers = [f"{metrics[key]['eer']:.2f}" for key in ("average", *EVENTS)]
    auc = f"{metrics['average']['auc']:.2f}"
    assert row(parts["table"], "tiny-4") == ["32,000", "80", auc, *eers, "91.00 / 16.00", "1"]
    assert row(parts["table"], "YAMNet, zero-shot")[:2] == ["999,000", "–"]
    order = [line.split(" | ")[0].strip("| ") for line in parts["table"].splitlines()[2:]]
    assert order == [*BESIDE.values(), "tiny", "tiny-8", "tiny-4", "tiny-pm4"]


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
    made, parts = made
    weights = resample(made.sources, DRAWS, 0)
    logits = [made.logits[name, 0].astype(np.float32) for name in (small, against)]
    one, other = (average_eer(made.targets, values, weights) for values in logits)
    low, high = interval(100 * (one / other - 1))
    points = [evaluate(made.targets, values, EVENTS)["average"]["eer"] for values in logits]
    here = f"{100 * (points[0] / points[1] - 1):+.1f} [{low:+.1f}, {high:+.1f}] %".replace("-", "−")
    assert row(parts["findings"], label)[:3] == [*start, here]


def test_models_without_results_have_no_figure(made):
    assert row(made[1]["findings"], "tiny-2 against float") == ["–", "< +15.0 %", "–", "–"]


def test_a_line_joins_a_student_from_its_fewest_bytes_to_its_most(made, monkeypatch, tmp_path):
    import matplotlib.figure

    from experiments.cells import read_results
    from experiments.plots import plot_sizes

    figures, save = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    results = read_results(made[0].scenes.parent / "own/cells")
    draws = dict.fromkeys(results, np.array([10.0, 20.0]))
    plot_sizes(tmp_path / "sizes.png", ["tiny"], ("8", "4"), results, draws)
    (axes,) = figures[0].axes
    sizes, eers = {line.get_label(): line.get_data() for line in axes.lines}["tiny, quantized in training"]
    assert list(sizes) == [32_000, 64_000, 256_000]
    expected = [results[name]["seed0"].metrics["average"]["eer"] for name in ("tiny-4", "tiny-8", "tiny")]
    np.testing.assert_allclose(eers, expected)
    assert (tmp_path / "sizes.png").stat().st_size < 50_000
