"""Score a run, one of its models, or an exported file."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from qkd_jax.commands.cli import docstring
from qkd_jax.commands.override import override
from qkd_jax.config import AnyData, DataConfig, HeadConfig, ManifestData, RunConfig, to_json
from qkd_jax.config.fields import STRICT
from qkd_jax.data.clip_list import clips_to_score, recordings_of
from qkd_jax.data.clips import Clip
from qkd_jax.data.dataset import Dataset, load_split
from qkd_jax.data.logits import write_logits
from qkd_jax.errors import InputError
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.evaluation.metrics import confusion, evaluate, single_label
from qkd_jax.evaluation.plots import plot_curves
from qkd_jax.evaluation.prediction import clip_logits, make_predict, make_predict_steps, step_logits
from qkd_jax.evaluation.report import write_report
from qkd_jax.evaluation.table import drawn_events, print_table
from qkd_jax.evaluation.timed_events import Rocs, timed_metrics
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.folder import find_model, load_run
from qkd_jax.run_folder.log import read_epochs
from qkd_jax.run_folder.recordings import check_recordings, same_but_moved
from qkd_jax.run_folder.run import Run
from qkd_jax.system.devices import computing
from qkd_jax.system.files import whole_file
from qkd_jax.training.heads import bytes_of_taggers, head_step_logits, read_by

_BEHIND = 1.0  # points of EER
_LIBRARIES = ("qkd_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateOptions:
    """Evaluation settings."""

    split: Literal["train", "valid", "test"] = "test"
    """Split to score."""
    json: str | None = None
    """JSON file for the metrics, in full precision."""
    data: DataConfig = ManifestData()
    """Recordings to score (default: the run's).  Events and clip length are always the run's."""


def main(arguments: list[str], prog: str) -> None:
    """Score the run, model or exported file that `arguments` start with."""
    from qkd_jax.commands.evaluate_file import run_around, score_file

    options_from = partial(override, prog=f"{prog} RUN[/MODEL]|FILE", description=docstring(__file__))
    if not arguments or arguments[0].startswith("-"):
        options_from(EvaluateOptions(), arguments)  # exits for --help
        raise InputError(
            "RUN[/MODEL]|FILE: expected a run folder or an exported file first, "
            f"got {arguments[0] if arguments else 'none'}"
        )
    path, settings = Path(arguments[0]), arguments[1:]
    is_file = path.is_file()
    run, model = (run_around(path), None) if is_file else find_model(path)
    default = recordings_of(run.config.data) if run else ManifestData()
    options = options_from(EvaluateOptions(data=default), settings)
    data = None if run and options.data == default else options.data
    if is_file:
        results = score_file(path, run=run, data=data, split=options.split)
    else:
        assert run is not None
        results = score(run, model=model, data=data, split=options.split)
    if options.json:
        with whole_file(Path(options.json), "w") as file:
            file.write(json.dumps(results, indent=2) + "\n")


@computing()
def score(
    run: Run | Path | str, *, model: str | None = None, data: AnyData | None = None, split: str = "test"
) -> dict[str, Any]:
    """Score the best state of each model of a run, or of one `model`, on a split; print and return the table.

    On the run's own data, logits are written to each model's folder, and figures, curves and report of the
    whole run to results.json, results.png and report.html (results-SPLIT, report-SPLIT for other splits),
    unless the folder is read-only.  On other `data` the figures are only printed.  Raises InputError.
    """
    run = run if isinstance(run, Run) else load_run(run)
    if data and not _same_recordings(data, run.config.data) and (moved := same_but_moved(run, data, split)):
        run, data = moved, None
    config, names = run.config, run.names
    if model is not None:
        run.check_model(model)
        names = [model]
    states = {name: run.best_variables(name) for name in names}
    own = data is None or _same_recordings(data, config.data)
    if own:
        check_recordings(run, [split])
        clips = run.clips
    else:
        assert data is not None
        clips = _other_clips(run, data, split)
        config = dataclasses.replace(config, data=data)
    keep = own and all(os.access(folder, os.W_OK) for folder in (run.folder, *map(run.model_folder, names)))
    dataset = load_split(config, clips, split, run.cache)
    if config.timed and (dataset.kind > 0).any():
        raise InputError(f"--split: expected a strongly labelled split, got {split}")

    models, logits, rocs = {}, {}, {}
    for name in names:
        network: Any = config.models[name].network
        variables, module = states[name], build_model(network, len(dataset.events))
        cost = model_cost(module, variables, run.shape_of(name), getattr(network, "quant", None))
        if isinstance(network, HeadConfig):
            inputs = read_by(run, name, dataset)
            logits[name], steps = head_step_logits(run, name, inputs, variables)
            cost = {"bytes": cost["bytes"] + bytes_of_taggers(network)}  # the rest of a tagger isn't known
        elif config.timed:
            predict = make_predict_steps(module)
            logits[name], steps = step_logits(predict, variables, dataset, config.frames, network)
        else:
            size = config.recipe.batch_size
            logits[name] = clip_logits(make_predict(module), variables, dataset, config.frames, size)
        if config.timed:
            metrics, rocs[name] = timed_metrics(config, network, dataset, logits[name], steps)
        else:
            metrics = evaluate(dataset.targets, logits[name], dataset.events)
        models[name] = {"metrics": metrics, **cost}
        if single_label(dataset.targets) and not config.timed:
            models[name]["confusion"] = confusion(dataset.targets, logits[name]).tolist()
        if keep:
            path = run.model_folder(name) / f"logits-{split}.npz"
            write_logits(path, dataset.names, dataset.events, logits[name])
    results = {"split": split, "clips": len(dataset.names), "models": models}
    print_table(results)
    if line := _behind(config, models):
        print(line)
    if keep and model is None:
        _keep(run, results, dataset, logits, rocs)
    if own and not keep:
        print(f"{run.folder} is read-only: results were not saved")
    return results


def _behind(config: RunConfig, models: dict[str, Any]) -> str:
    """A line that names students with a higher EER than a zero-shot head, or a point more than another."""
    errors = {name: row["metrics"]["average"]["eer"] for name, row in models.items()}
    limits = {
        name: errors[name] + _BEHIND * head.fit for name, head in config.heads.items() if name in errors
    }
    students = [name for name in models if config.models[name].teachers]
    if not limits or not students:
        return ""
    head = min(limits, key=limits.__getitem__)
    behind = [f"{name} (EER {errors[name]:.1f})" for name in students if errors[name] > limits[head]]
    if not behind:
        return ""
    return (
        f"{', '.join(behind)} {'are' if len(behind) > 1 else 'is'} behind {head} (EER {errors[head]:.1f}): "
        "more training recordings would help, also without labels (--data.unlabelled DIR)"
    )


def _same_recordings(data: AnyData, own: AnyData) -> bool:
    """Whether `data` names a run's own recordings, however the root is spelled and bad ones are treated."""
    root = data.root and str(Path(data.root).absolute())
    return dataclasses.replace(data, root=root, skip_bad=own.skip_bad) in (own, recordings_of(own))


def _keep(
    run: Run, results: dict[str, Any], dataset: Dataset, logits: dict[str, np.ndarray], rocs: dict[str, Rocs]
) -> None:
    suffix = "" if results["split"] == "test" else f"-{results['split']}"
    figures, curves, report = (
        run.folder / f"{stem}{suffix}.{kind}"
        for stem, kind in (("results", "json"), ("results", "png"), ("report", "html"))
    )
    with whole_file(figures, "w") as file:
        file.write(json.dumps(results, indent=2) + "\n")
    shown = drawn_events(results["models"])
    columns = [dataset.events.index(event) for event in shown]
    some = {name: values[:, columns] for name, values in logits.items()}
    plot_curves(curves, dataset.targets[:, columns], some, shown)
    paths = {clip.name: clip.path for clip in run.clips}
    write_report(
        report,
        results,
        title=run.folder.absolute().name,
        targets=dataset.targets,
        logits=logits,
        clips={name: paths[name] for name in dataset.names},
        history={name: read_epochs(run.model_folder(name)) for name in logits},
        config_json=to_json(run.config),
        versions={"python": platform.python_version()}
        | {library: importlib.metadata.version(library) for library in _LIBRARIES},
        teachers={teacher for model in run.config.models.values() for teacher in model.teachers},
        rocs=rocs,
        final=run.config.final,
    )
    print(f"Report: {report}; metrics: {figures}")


def _other_clips(run: Run, data: AnyData, split: str) -> list[Clip]:
    for field in ("events", "clip_seconds"):
        if getattr(data, field) != (fixed := getattr(run.config.data, field)):
            flag = field.replace("_", "-")
            raise InputError(f"--data.{flag}: expected {fixed}, as in the run, got {getattr(data, field)}")
    return clips_to_score(data, run.config.features, run.cache, split, run.clips, timed=run.config.timed)
