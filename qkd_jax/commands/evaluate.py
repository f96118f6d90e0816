"""Scoring a run's models on a split: figures, logits, table, curves and report."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.config import CRNNConfig, DataConfig, LSTMConfig, RunConfig, to_json, with_data
from qkd_jax.data.clip_list import usable_clips
from qkd_jax.data.clips import Clip
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import write_logits
from qkd_jax.data.timed import SedDataset, load_sed_split
from qkd_jax.detector.stream import clock
from qkd_jax.errors import InputError
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.plots import plot_curves
from qkd_jax.evaluation.prediction import clip_logits, make_detect, make_predict, step_logits
from qkd_jax.evaluation.report import write_report
from qkd_jax.evaluation.table import print_table
from qkd_jax.evaluation.timed_events import Rocs, evaluate_sound_events
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.folder import TEACHER, Run
from qkd_jax.run_folder.log import read_epochs
from qkd_jax.system.files import whole_file

_LIBRARIES = ("qkd_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


def score_run(
    run: Run, *, only: str | None = None, data: DataConfig | None = None, split: str = "test"
) -> dict[str, Any]:
    """Score the best state of each model, or of `only` one, on a split; print and return the table.

    On the run's own data the logits go to each model's folder, and figures, curves and report of
    the whole run to results.json, results.png and report.html (results-SPLIT, report-SPLIT for
    other splits), unless the folder is read-only.  On other `data` figures are printed and not kept.
    Raises InputError.
    """
    config, sed = run.config, isinstance(run.config, RunConfig)
    if only is not None and only not in run.names:
        raise InputError(f"{run.folder}: no model {only!r}; there are: {', '.join(run.names)}")
    names = run.names if only is None else [only]
    states = {name: run.best_variables(name) for name in names}
    own = data is None or _resolved(run, data) == config.data
    if data is None or own:
        clips = run.clips
    else:
        config, clips = dataclasses.replace(config, data=data), _other(run, data, split)
    keep = own and os.access(run.folder, os.W_OK)
    dataset = _load(config, clips, split, run.cache)
    if sed and (dataset.kind > 0).any():
        raise InputError(f"--split: expected one of which all onsets and offsets are known, got {split}")

    models, scores, rocs = {}, {}, {}
    for name in names:
        network, variables = config.networks[name], states[name]
        model = build_model(network, len(dataset.events))
        if sed:
            logits, frames = step_logits(make_detect(model), variables, dataset, config.frames, network)
            metrics, rocs[name] = sound_event_metrics(config, network, dataset, logits, frames)
        else:
            predict = make_predict(model)
            logits = clip_logits(predict, variables, dataset, config.frames, config.train.batch_size)
            metrics = evaluate(dataset.targets, logits, dataset.events)
        cost = model_cost(model, variables, run.shape, getattr(network, "quant", None))
        models[name] = {"metrics": metrics, **cost}
        scores[name] = logits
        if keep:
            write_logits(run.folder / name / f"logits-{split}.npz", dataset.names, dataset.events, logits)
    results = {"split": split, "clips": len(dataset.names), "models": models}
    print_table(results)
    if keep and only is None:
        _keep(run, results, dataset, scores, rocs)
    if own and not keep:
        print(f"{run.folder}: read-only, so nothing is kept there")
    return results


def sound_event_metrics(
    config: RunConfig,
    network: CRNNConfig | LSTMConfig,
    data: SedDataset,
    clip: np.ndarray,
    frames: Sequence[np.ndarray],
    *,
    f1: bool = True,
) -> tuple[dict[str, dict[str, float]], Rocs]:
    """The figures of `evaluate` and `evaluate_sound_events`, and the latter's curves.

    `clip` [clips, events] and `frames`, [steps, events] of each clip, are logits.
    """
    sounds, rocs = evaluate_sound_events(
        dict(zip(data.names, data.spans)),
        dict(zip(data.names, frames)),
        dict(zip(data.names, data.seconds)),
        data.events,
        clock(config.features, network),
        threshold=0.0,
        median=config.median,
        f1=f1,
    )
    table = evaluate(data.targets, clip, data.events)
    return {key: figures | sounds[key] for key, figures in table.items()}, rocs


def _load(config: Any, clips: Sequence[Clip], split: str, cache: Path) -> Any:
    return (load_sed_split if isinstance(config, RunConfig) else load_split)(config, clips, split, cache)


def _keep(
    run: Run, results: dict[str, Any], dataset: Any, scores: dict[str, Any], rocs: dict[str, Rocs]
) -> None:
    suffix = "" if results["split"] == "test" else f"-{results['split']}"
    figures, curves, report = (
        run.folder / f"{stem}{suffix}.{kind}"
        for stem, kind in (("results", "json"), ("results", "png"), ("report", "html"))
    )
    with whole_file(figures, "w") as file:
        file.write(json.dumps(results, indent=2) + "\n")
    plot_curves(curves, dataset.targets, scores, dataset.events)
    paths = {clip.name: clip.path for clip in run.clips}
    write_report(
        report,
        results,
        title=run.folder.absolute().name,
        targets=dataset.targets,
        logits=scores,
        clips={name: paths[name] for name in dataset.names},
        history={name: read_epochs(run.folder / name) for name in scores},
        config_json=to_json(run.config),
        versions={"python": platform.python_version()}
        | {library: importlib.metadata.version(library) for library in _LIBRARIES},
        teachers=[TEACHER],
        rocs=rocs,
    )
    print(f"{report} shows them; {figures} has the figures")


def _resolved(run: Run, data: DataConfig) -> DataConfig:
    """`data` as a run's own settings are written down, what was left out aside."""
    root = data.root and str(Path(data.root).absolute())
    return dataclasses.replace(data, root=root, skip_bad=run.config.data.skip_bad)


def _other(run: Run, data: DataConfig, split: str) -> list[Clip]:
    """The clips of `split` in other recordings; what the run knows it may have learned from."""
    fixed = run.config.data
    for field in ("events", "clip_seconds"):
        if getattr(data, field) != getattr(fixed, field):
            raise InputError(
                f"data.{field}: a run's models have {getattr(fixed, field)}, got {getattr(data, field)}"
            )
    return other_clips(dataclasses.replace(run.config, data=data), split, run.cache, run.clips)


def other_clips(config: RunConfig | RunConfig, split: str, cache: Path, own: Sequence[Clip]) -> list[Clip]:
    """The recordings of `config`, in `split` where no column says another; raises InputError.

    Those that a run knows by the name of one of its `own` are in the split that they are in there.
    """
    if config.data.source == "demo":  # they are there already
        config = with_data(config, source="manifest")
    clips, _ = usable_clips(config, cache)
    known = {clip.name: clip.split for clip in own}
    if shared := sum(clip.name in known for clip in clips):
        print(f"{shared} of {len(clips)} recordings are the run's own by name, and stay in its splits")
    return [dataclasses.replace(clip, split=known.get(clip.name) or clip.split or split) for clip in clips]
