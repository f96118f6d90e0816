"""Trains the cells of an experiment that have no results yet, and keeps what they came to."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qkd_jax
from benchmarks.common import processor, versions
from experiments.cells import Cell, Place, Result, write_result
from qkd_jax.config import EventRecipe, HeadConfig, ModelConfig, RunConfig, is_file, with_data
from qkd_jax.data.clips import SPLITS
from qkd_jax.data.dataset import load_split
from qkd_jax.data.logits import read_logits, write_logits
from qkd_jax.errors import InputError
from qkd_jax.evaluation.cost import model_cost
from qkd_jax.evaluation.metrics import evaluate, kept_epoch
from qkd_jax.evaluation.prediction import clip_logits, make_predict
from qkd_jax.models.build import build_model
from qkd_jax.run_folder.folder import load_run
from qkd_jax.run_folder.log import read_epochs
from qkd_jax.run_folder.run import Run
from qkd_jax.training.teachers import teaching_file

PACKAGES = ("qkd_jax", "jax", "flax", "optax", "numpy")


def run_cell(cell: Cell, place: Place, cells: Sequence[Cell]) -> None:
    """Train what `cell` lacks of its results, with everything that needs, and keep them."""
    lacking = [name for name in cell.results if not place.path(name, cell.part).is_file()]
    if not lacking:
        return
    config = resolved(cell, lacking, place, cells)
    begun, resumed = time.monotonic(), (place.runs / config.name).exists()
    run = train(config)
    _keep(cell, run, lacking, place, None if resumed else time.monotonic() - begun)


def train(config: RunConfig) -> Run:
    """The finished run of `config`; what an interrupted one has left is not trained again."""
    folder = Path(config.runs) / config.name
    if (folder / "report.html").is_file() and config.models.keys() <= load_run(folder).config.models.keys():
        return load_run(folder)
    return qkd_jax.train(config)


def resolved(cell: Cell, results: Sequence[str], place: Place, cells: Sequence[Cell]) -> RunConfig:
    """The run that gives `results`: only the models that they need, with full paths."""
    wanted = {cell.quantized[name][0] if name in cell.quantized else name for name in results}
    needed: dict[str, ModelConfig] = {}
    for name, model in reversed(cell.config.models.items()):
        if name in wanted:
            guide = model.objective.embeddings if model.objective else None
            wanted |= {each for each in (model.start, guide, *model.teachers) if each}
            needed[name] = _with_paths(model, place, cells)
    models = dict(reversed(needed.items()))
    config = dataclasses.replace(cell.config, runs=str(place.runs), models=models)
    if place.data is None:
        return config
    root, further = place.data.absolute(), config.data.unlabelled
    return with_data(config, root=str(root), unlabelled=further and str(root / further))


def _with_paths(model: ModelConfig, place: Place, cells: Sequence[Cell]) -> ModelConfig:
    def path(name: str) -> str:
        if not is_file(name) or Path(name).is_absolute():
            return name
        return str(place.tagger(name) if name.endswith(".toml") else teaching_logits(name, place, cells))

    model = dataclasses.replace(model, teachers=tuple(map(path, model.teachers)))
    if isinstance(model.network, HeadConfig):
        network = dataclasses.replace(model.network, taggers=tuple(map(path, model.network.taggers)))
        model = dataclasses.replace(model, network=network)
    if model.objective and model.objective.embeddings:
        objective = dataclasses.replace(model.objective, embeddings=path(model.objective.embeddings))
        model = dataclasses.replace(model, objective=objective)
    return model


def teaching_logits(name: str, place: Place, cells: Sequence[Cell]) -> Path:
    """The logits NAME-PART.npz of the model NAME on its training clips; it is trained if its run isn't there.

    Those of clips are kept beside the results, as NAME-PART-train.npz.  Those of timed events are too large,
    so a student of such a teacher costs its training on a new machine: the same seed and settings give it
    again.
    """
    kept = place.cells / f"{Path(name).stem}-train.npz"
    (teacher,) = (cell for cell in cells if cell.teaches and f"{cell.name}-{cell.part}.npz" == name)
    if kept.is_file() and place.path(teacher.name, teacher.part).is_file():
        return kept.absolute()
    run = train(resolved(teacher, [teacher.name], place, cells))
    clips = run.clips
    data = {split: load_split(run.config, clips, split, run.cache) for split in SPLITS}
    path = teaching_file(run, teacher.name, data)
    if run.config.timed:
        return path.absolute()
    names, events = data["train"].names, data["train"].events
    write_logits(kept, names, events, read_logits(path, names, events).astype(np.float16))
    return kept.absolute()


def _keep(cell: Cell, run: Run, results: Sequence[str], place: Place, seconds: float | None) -> None:
    """Write the results named: figures, and the logits of the test clips."""
    config, events = run.config, run.config.data.events
    scored = run.results["models"]
    for name in results:
        model, network = cell.quantized.get(name, (name, None))
        with np.load(run.model_folder(model) / "logits-test.npz") as archive:
            names, logits = archive["names"].tolist(), archive["logits"]
        figures: dict[str, Any] = {key: value for key, value in scored[model].items() if key != "confusion"}
        if network is not None:
            test, batch = load_split(config, run.clips, "test", run.cache), config.recipe.batch_size
            flax_model, variables = build_model(network, len(events)), run.best_variables(model)
            logits, names = (
                clip_logits(make_predict(flax_model), variables, test, config.frames, batch),
                test.names,
            )
            metrics = evaluate(test.targets, logits, events)
            figures = {"metrics": metrics, **model_cost(flax_model, variables, run.shape, network.quant)}
        epochs = read_epochs(run.model_folder(model))
        best = epochs[kept_epoch(epochs, config.final)]
        figures |= {"valid": best["valid"], "best_epoch": best["epoch"], "epochs": len(epochs)}
        figures |= {"seconds": seconds, "command": place.command, "seed": config.recipe.seed}
        if isinstance(config.recipe, EventRecipe):
            figures["batch"] = [config.recipe.strong, config.recipe.weak, config.recipe.unlabelled]
        result = Result(
            **figures,
            training_clips=sum(clip.split == "train" for clip in run.clips),
            teachers=[Path(teacher).name for teacher in cell.config.models[model].teachers],
            machine=processor(),
            versions=versions(*PACKAGES),
        )
        write_result(place.path(name, cell.part), result, names, events, logits)


def chosen(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """The cells of these names, all if there are none; raises InputError for an unknown name."""
    known = [cell.name for cell in cells]
    for name in names:
        if name not in known:
            raise InputError(f"--cells: expected some of {', '.join(dict.fromkeys(known))}, got {name!r}")
    return [cell for cell in cells if not names or cell.name in names]
