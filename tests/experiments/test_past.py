"""Students past the paper: their runs, and the page from made-up results."""

import numpy as np
import pytest

from benchmarks.common import EVENTS
from experiments import bootstrap, past
from experiments.past import BESIDE
from qkd_jax.evaluation.metrics import evaluate
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
        patch.setattr(bootstrap.read_scenes, "__defaults__", (made.scenes,))
        return made, past.parts(folder / "own", folder / "paper")


def test_each_model_has_its_cost_and_its_figures(made):
    made, parts = made
    metrics = evaluate(made.targets, made.logits["tiny-4", 0].astype(np.float32), EVENTS)
    eers = [f"{each['eer']:.2f}" for each in (metrics["average"], *metrics["events"].values())]
    auc = f"{metrics['average']['auc']:.2f}"
    assert row(parts["table"], "tiny-4") == ["32,000", "80", auc, *eers, "91.00 / 16.00", "1"]
    assert row(parts["table"], "YAMNet, zero-shot")[:2] == ["999,000", "–"]
    order = [line.split(" | ")[0].strip("| ") for line in parts["table"].splitlines()[2:]]
    assert order == [*BESIDE.values(), "tiny", "tiny-8", "tiny-4", "tiny-pm4"]
