"""Scoring a run's models on a split: figures, logits, table and curves."""

import dataclasses
import json
from typing import Any

from qkd_jax.config import DataConfig, InputError, with_data
from qkd_jax.data.features import Dataset
from qkd_jax.data.logits import write_logits
from qkd_jax.data.manifest import read_manifest
from qkd_jax.data.source import load_split, read_clips
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
    whole run to results.json and results.png (results-SPLIT for other splits).  On other `data`
    they are printed and not kept.  Raises InputError.
    """
    config = run.config
    if only is not None and only not in run.names:
        raise InputError(f"{run.folder}: no model {only!r}; there are: {', '.join(run.names)}")
    names = run.names if only is None else [only]
    states = {name: run.best_variables(name) for name in names}
    other = None if data == config.data else data
    own = other is None
    dataset = _own(run, split) if other is None else _other(run, other, split)

    models, curves = {}, {}
    for name in names:
        model, variables = run.model(name), states[name]
        logits = clip_logits(make_predict(model), variables, dataset, config.frames, config.train.batch_size)
        quant = None if name == TEACHER else config.students[name].quant
        cost = model_cost(model, variables, run.shape, quant)
        models[name] = {"metrics": evaluate(dataset.targets, logits, dataset.events), **cost}
        curves[name] = logits
        if own:
            write_logits(run.folder / name / f"logits-{split}.npz", dataset.names, dataset.events, logits)
    results = {"split": split, "clips": len(dataset.names), "models": models}
    print_table(results)
    if own and only is None:
        stem = run.folder / ("results" if split == "test" else f"results-{split}")
        stem.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
        plot_curves(stem.with_suffix(".png"), dataset.targets, curves, dataset.events)
        print(f"{stem}.json and .png hold the figures and the curves")
    return results


def _own(run: Run, split: str) -> Dataset:
    return load_split(run.config, read_clips(run.config.data, run.config.features), split)


def _other(run: Run, data: DataConfig, split: str) -> Dataset:
    """The clips of `split` in other recordings; all of them where no column says a split."""
    fixed = run.config.data
    for field in ("events", "clip_seconds"):
        if getattr(data, field) != getattr(fixed, field):
            raise InputError(
                f"data.{field}: a run's models have {getattr(fixed, field)}, got {getattr(data, field)}"
            )
    # Whatever made the run's recordings, these are there already.
    config = with_data(dataclasses.replace(run.config, data=data), source="manifest")
    clips = [dataclasses.replace(clip, split=clip.split or split) for clip in read_manifest(config.data)]
    return load_split(config, clips, split)
