"""Train the models of PRESET, or resume its run.  --teacher MODEL|FILE … sets all students' teachers."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qkd_jax.commands.cli import docstring, load_preset
from qkd_jax.commands.override import override, take, with_teachers
from qkd_jax.config import ClipRecipe, RunConfig, with_data
from qkd_jax.errors import InputError
from qkd_jax.system.interrupt import stop_requests

if TYPE_CHECKING:
    from qkd_jax.run_folder.run import Run


def main(arguments: list[str], prog: str) -> None:
    """Train the preset, a name or a file, that `arguments` start with; by default demo."""
    config = config_of(arguments, prog, docstring(__file__))
    from qkd_jax.system.devices import join_processes, use_all_cores

    if config.distributed:
        join_processes()
    else:
        use_all_cores(config.recipe.batch_size)
    if len(_folds(config)) > 1:
        cross_validate(config)
    else:
        train(config)


def config_of(arguments: list[str], prog: str, description: str | None) -> RunConfig:
    """The preset, a name or a file, that `arguments` start with (by default demo), with its other arguments.

    Prints the settings and exits for --help; raises InputError for a wrong argument.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = load_preset(arguments[0] if named else "demo")
    teachers, settings = take("--teacher", arguments[named:])
    if teachers:
        preset = with_teachers(preset, teachers)
    return override(
        preset, settings, prog=f"{prog} {arguments[0] if named else '[PRESET]'}", description=description
    )


def train(config: RunConfig) -> "Run":
    """Train the models of `config` in order, or resume the run, then score them on the test split.

    The folder of the returned run holds everything (see `qkd_jax.run_folder.run`); `run.results` has the
    figures.  Raises InputError, and KeyboardInterrupt when asked to stop: the same call then resumes.
    """
    # Imported here, since JAX takes seconds and --help needs none of it.
    from qkd_jax.commands.evaluate import score
    from qkd_jax.run_folder.folder import open_run
    from qkd_jax.system.devices import computing
    from qkd_jax.training.run import check_config, train_models

    if len(_folds(config)) > 1:
        raise InputError(
            "--data.folds: expected one fold, got several: `cross_validate` trains a run for each"
        )
    with computing(), stop_requests():
        check_config(config)
        with open_run(config) as run:
            train_models(run)
            score(run)
    return run


def cross_validate(config: RunConfig) -> list["Run"]:
    """Train and score a run NAME-foldK for each test fold K of `config.data.folds`; print mean and spread.

    Each run is `final`: it trains on all other folds for all epochs, and nothing is chosen by the test fold.
    The figures of all folds are also in `runs`/NAME-folds.json.  Raises InputError, and KeyboardInterrupt as
    `train`: the same call then resumes.
    """
    from qkd_jax.data.clip_list import listed_clips
    from qkd_jax.data.prepare import check_splits
    from qkd_jax.evaluation.table import print_folds
    from qkd_jax.system.devices import is_first
    from qkd_jax.system.files import whole_file

    folds = _folds(config)
    if len(folds) < 2:
        raise InputError(f"--data.folds: expected at least two, got {len(folds)}")
    if not isinstance(config.recipe, ClipRecipe):
        raise InputError(f"--data.folds: expected one fold for timed events, got {len(folds)}")
    for fold in folds:  # raises now, rather than after hours of training
        data = with_data(config, folds=(fold,)).data
        check_splits(data, listed_clips(data))
    recipe, runs = dataclasses.replace(config.recipe, final=True), {}
    for fold in folds:
        print(f"fold {fold}", flush=True)
        of_fold = dataclasses.replace(config, name=f"{config.name}-fold{fold}", recipe=recipe)
        runs[fold] = train(with_data(of_fold, folds=(fold,)))
    results = {str(fold): run.results for fold, run in runs.items()}
    path = Path(config.runs) / f"{config.name}-folds.json"
    if is_first():
        with whole_file(path, "w") as file:
            file.write(json.dumps(results, indent=2) + "\n")
    print_folds(results)
    print(f"Reports: {', '.join(str(run.folder / 'report.html') for run in runs.values())}; metrics: {path}")
    return list(runs.values())


def _folds(config: RunConfig) -> tuple[int, ...]:
    return getattr(config.data, "folds", ())
