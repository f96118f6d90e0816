"""Begin a run, resume it, or load it."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from qkd_jax.config import (
    DemoData,
    HeadConfig,
    ModelConfig,
    RunConfig,
    from_json,
    is_file,
    to_json,
    with_data,
)
from qkd_jax.data.check import early_findings
from qkd_jax.data.clip_list import listed_clips, usable_clips
from qkd_jax.data.clips import summary, write_clips
from qkd_jax.data.features import cached_features
from qkd_jax.data.parts import cached_frames
from qkd_jax.data.prepare import prepared
from qkd_jax.errors import InputError
from qkd_jax.run_folder.recordings import check_recordings, in_places_of, moved_to, places_of, write_sizes
from qkd_jax.run_folder.run import Run, check_start
from qkd_jax.system.devices import any_process, is_first, wait_for_all
from qkd_jax.system.files import whole_file


@contextlib.contextmanager
def open_run(config: RunConfig) -> Iterator[Run]:
    """Begin the run of `config` or resume it; no other process can open it within the block.

    Settings and recordings are fixed from the first checkpoint on, but recordings may move: see
    `recordings.moved_to`.  Raises InputError if the folder holds a run with other settings, if another
    process trains it, or if recordings can't be used.
    """
    folder = Path(config.runs) / config.name
    config = _resolved(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    with contextlib.suppress(Timeout):
        if is_first():
            lock.acquire(timeout=0)
    if any_process(is_first() and not lock.is_locked):
        raise InputError(f"{folder}: another process trains this run; use another --name")
    try:
        if any_process(any(folder.glob("models/*/checkpoints/*"))):
            run = load_run(folder)
            if not config.data.events:
                config = with_data(config, events=run.config.data.events)
            _check_same(run.config, config, folder / "config.json")
            if places_of(config.data) == places_of(run.config.data):
                check_recordings(run)
            else:
                _write_config(moved_to(run, config.data))
                for old, new in zip(places_of(run.config.data), places_of(config.data)):
                    if old != new:
                        print(f"recordings: now in {new}, before in {old}", flush=True)
            yield Run(folder, config)
        else:
            yield _begin(Run(folder, config))
    finally:
        lock.release()


def _begin(run: Run) -> Run:
    config = run.config
    if (run.folder / "config.json").is_file():
        _check_version(run.folder / "config.json")
    listed = listed_clips(config.data)
    usable, bad = usable_clips(config.data, config.features, run.cache, listed)
    frames = cached_frames(usable, config.data, config.features, run.cache)
    config, clips = prepared(config, usable, frames)
    print(summary(clips, config.data.events), flush=True)
    entries, _ = cached_features(clips, config.features, run.cache, config.data.channel)
    for finding in early_findings(config, clips, entries, listed):
        print(f"warning: {finding}", flush=True)
    # Remove files of an earlier start.
    for pattern in (
        "left-out.txt",
        "norm.npz",
        "teachers/*.npy",
        "models/*/embeddings.npz",
        "models/*/classes.npz",
        "models/*/inputs.npz",
    ):
        for path in run.folder.glob(pattern):
            path.unlink(missing_ok=True)
    if bad:
        with whole_file(run.folder / "left-out.txt", "w") as file:
            file.writelines(f"{reason}\n" for reason in bad)
    run = Run(run.folder, config)
    write_clips(run.folder / "clips.jsonl", clips)
    write_sizes(run, clips)
    _write_config(run)
    wait_for_all(run.folder)
    return run


def _write_config(run: Run) -> None:
    with whole_file(run.folder / "config.json", "w") as file:
        file.write(to_json(run.config) + "\n")


def load_run(folder: Path | str) -> Run:
    """The run in `folder`; raises InputError if there is none."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a run's folder, with a config.json, found none")
    config = from_json(RunConfig, _check_version(path), str(path))
    if isinstance(config.data, DemoData):  # its recordings move with the run
        config = with_data(config, root=_demo_root(folder))
    return Run(folder, config)


def find_model(path: Path | str) -> tuple[Run, str | None]:
    """The run at `path`, and the model's name if the path is RUN/MODEL or RUN/models/MODEL.

    Raises InputError if there is no such run or model.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return load_run(path), None
    for folder in (path.parent, path.parent.parent):
        if (folder / "config.json").is_file():
            run = load_run(folder)
            run.check_model(path.name)
            return run, path.name
    raise InputError(f"{path}: expected a run's folder, with a config.json, or RUN/MODEL, found none")


def start_of(run: Run, name: str) -> tuple[Run, str] | None:
    """The run and the model whose best weights initialize model `name`; raises InputError.

    None if it trains from scratch, or if it has a checkpoint already.
    """
    start = run.config.models[name].start
    # Ignore partially written checkpoints.
    begun = (path.name.isdigit() for path in (run.model_folder(name) / "checkpoints").glob("*"))
    if start is None or any(begun):
        return None
    if "/" not in start:
        return run, start
    other, _ = find_model(start)
    check_start(run.config, name, other.config, start)
    return other, Path(start).name


def _check_version(path: Path) -> str:
    """The text of a run's settings; raises InputError if an earlier version of qkd_jax wrote them."""
    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a run's settings: {error}") from None
    if isinstance(settings, dict) and "train" in settings:
        raise InputError(
            f"{path.parent}: this run is from before version 0.2, whose settings differ; use another --name, "
            "or read it with version 0.1"
        )
    return text


def _resolved(config: RunConfig, folder: Path) -> RunConfig:
    """`config` with absolute paths, so that the run can be resumed from any folder."""
    root = config.data.root
    if isinstance(config.data, DemoData):
        home = _demo_root(folder)
        if root not in (None, home):
            raise InputError(
                f"--data.root: the demo makes its own recordings in {home}, got {root}; "
                "for your own recordings: qkd-jax train small --data.root DIR"
            )
        root = home
    elif root is not None:
        root = str(Path(root).absolute())
    cache = config.cache and str(Path(config.cache).absolute())
    unlabelled = config.data.unlabelled and str(Path(config.data.unlabelled).absolute())
    models = {name: _with_absolute_paths(model) for name, model in config.models.items()}
    return with_data(
        dataclasses.replace(config, cache=cache, models=models), root=root, unlabelled=unlabelled
    )


def _with_absolute_paths(model: ModelConfig) -> ModelConfig:
    def absolute(name: str) -> str:
        return str(Path(name).absolute()) if is_file(name) or "/" in name else name

    objective = model.objective
    if objective is not None and objective.embeddings is not None:
        objective = dataclasses.replace(objective, embeddings=absolute(objective.embeddings))
    network = model.network
    if isinstance(network, HeadConfig):
        network = dataclasses.replace(network, taggers=tuple(map(absolute, network.taggers)))
    return dataclasses.replace(
        model,
        network=network,
        teachers=tuple(map(absolute, model.teachers)),
        start=model.start and absolute(model.start),
        objective=objective,
    )


def _demo_root(folder: Path) -> str:
    return str((folder / "data").absolute())


def _check_same(old: RunConfig, new: RunConfig, path: Path) -> None:
    """Raise InputError that names every setting that differs from the run's."""
    # These don't affect the results: where the folders are, and on how many processes it runs.
    same = {key: getattr(old, key) for key in ("name", "runs", "cache", "distributed")}
    new = dataclasses.replace(new, **same, data=in_places_of(old.data, new.data))
    before, after = _flat(old), _flat(new)
    differing = [field for field in before | after if before.get(field) != after.get(field)]
    if differing:
        changes = ", ".join(f"{field} = {before.get(field)}, now {after.get(field)}" for field in differing)
        raise InputError(
            f"{path}: this run has {changes}; use another --name, or delete the folder to start again"
        )


def _flat(config: RunConfig) -> dict[str, Any]:
    """Each setting by its path."""
    leaves = jax.tree.leaves_with_path(json.loads(to_json(config)), is_leaf=lambda x: not isinstance(x, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in leaves}
