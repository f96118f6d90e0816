"""Scoring a run's models on a split: figures, logits, table and curves."""

import dataclasses
import json
from typing import Any

from qkd_jax.config import DataConfig, InputError, with_data
from qkd_jax.data.source import load_split, read_clips
from qkd_jax.distill.teacher import write_logits
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.plots import plot_curves
from qkd_jax.evaluation.scores import clip_logits, make_predict
from qkd_jax.evaluation.table import print_table
from qkd_jax.train.folder import TEACHER, Run


def score_run(
    run: Run, *, only: str | None = None, data: DataConfig | None = None, split: str = "test"
) -> dict[str, Any]:
    """Score the best state of each model, or of `only` one, on a split; print and return the table.

    On the run's own data the logits go to each model's folder, and figures and curves of the
    whole run to results.json and results.png (results-SPLIT for other splits).  On other `data`,
    whose events and clip length are the run's, they are printed and not kept.  Raises InputError.
    """
    config = run.config
    own = data is None or data == config.data
    if data is not None and not own:
        config = dataclasses.replace(config, data=data)
        # Whatever made the run's recordings, these are there already.
        config = with_data(
            config,
            source="manifest",
            events=run.config.data.events,
            clip_seconds=run.config.data.clip_seconds,
        )
    if only is not None and only not in run.names:
        raise InputError(f"{run.folder}: no model {only!r}; there are: {', '.join(run.names)}")
    dataset = load_split(config, read_clips(config.data, config.features), split)

    models, curves = {}, {}
    for name in run.names if only is None else [only]:
        model, variables = run.model(name), run.best_variables(name)
        logits = clip_logits(make_predict(model), variables, dataset, config.frames, config.train.batch_size)
        quant = None if name == TEACHER else config.students[name].quant
        cost = model_cost(model, variables, run.shape, quant)
        models[name] = {"metrics": evaluate(dataset.targets, logits, dataset.events), **cost}
        curves[name] = logits
        if own:
            write_logits(run.folder / name / f"logits-{split}.npz", dataset.names, dataset.events, logits)
    results = {"split": split, "clips": len(dataset.names), "models": models}
    if own and only is None:
        stem = "results" if split == "test" else f"results-{split}"
        (run.folder / f"{stem}.json").write_text(json.dumps(results, indent=2) + "\n")
        plot_curves(run.folder / f"{stem}.png", dataset.targets, curves, dataset.events)
    print_table(results)
    if own and only is None:
        print(f"{run.folder / stem}.json and .png hold the figures and the curves")
    return results
