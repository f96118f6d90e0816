"""Cells, the units of an experiment: what each trains, and the results that are kept of it."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from qkd_jax.config import LSTMConfig, ModelConfig, RunConfig, from_json, to_json
from qkd_jax.config.fields import STRICT
from qkd_jax.data.logits import write_logits
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

_FILE = re.compile(r"(?P<name>.+)-(?P<part>(?:seed|fold)\d+)")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One seed or fold of a float model, with everything that starts from it: one run of at most 75 minutes.

    In `config`, paths are relative: `data.root` is left out, `data.unlabelled` lies in it, and of teachers
    and embeddings a .toml lies in the folder of taggers, and NAME-PART.npz holds the logits of a cell that
    `teaches`.
    """

    name: str
    config: RunConfig
    part: str = "seed0"
    """Which seed or fold."""
    unkept: tuple[str, ...] = ()
    """Models that only serve others of the run; another cell keeps their results, or none does."""
    quantized: Mapping[str, tuple[str, LSTMConfig]] = dataclasses.field(default_factory=dict)
    """Results of quantization after training: by name, a model of the run and the network it becomes."""
    teaches: bool = False
    """Whether other cells learn from its logits on the training clips."""

    @property
    def results(self) -> tuple[str, ...]:
        """The names of its results: its models, and what they become by quantization."""
        return (*(name for name in self.config.models if name not in self.unkept), *self.quantized)


def renamed(config: RunConfig, prefix: str) -> RunConfig:
    """`config` with `prefix` before the names of its models, so that results of several cells differ."""

    def prefixed(name: str) -> str:
        return prefix + name if name in config.models else name

    models: dict[str, ModelConfig] = {
        prefixed(name): dataclasses.replace(
            model, teachers=tuple(map(prefixed, model.teachers)), start=model.start and prefixed(model.start)
        )
        for name, model in config.models.items()
    }
    return dataclasses.replace(config, models=models)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Result:
    """What is kept of a model; what is unknown of one from elsewhere is None."""

    metrics: dict[str, dict[str, Any]]
    """In percent on the test clips: the form of `qkd_jax.evaluate`."""
    bytes: int
    parameters: int | None = None
    multiply_adds: int | None = None
    quantized_values: int | None = None
    valid: dict[str, float] | None = None
    """Averages on validation at the best epoch."""
    best_epoch: int | None = None
    """Number of that epoch, from 1."""
    epochs: int | None = None
    """Epochs trained."""
    training_clips: int | None = None
    batch: list[int] | None = None
    """For timed events, strongly labelled, weakly labelled and unlabelled clips per update."""
    teachers: list[str] = dataclasses.field(default_factory=list)
    """Names of its teachers' files or models."""
    seconds: float | None = None
    """Wall-clock time of the whole cell; None if something interrupted it or shared the machine."""
    command: str | None = None
    seed: int | None = None
    machine: str | None = None
    versions: str | None = None

    @property
    def columns(self) -> dict[str, dict[str, float]]:
        """The figures on average and of each event, as tables show them side by side."""
        return {"average": self.metrics["average"], **self.metrics["events"]}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an experiment reads and writes, and the command that runs it."""

    data: Path | None
    """Folder of the recordings; the demo needs none."""
    runs: Path
    """Folder of the runs, which may be deleted once their cells are done."""
    cells: Path
    """Folder of the results, which are committed."""
    taggers: Path
    """Folder of the taggers' settings (.toml), beside their models."""
    command: str

    def path(self, name: str, part: str = "seed0") -> Path:
        """The file of a result; its logits lie beside it, as .npz."""
        return self.cells / f"{name}-{part}.json"

    def tagger(self, name: str) -> Path:
        """The settings of a tagger; raises InputError if they aren't there."""
        path = self.taggers / name
        if not path.is_file():
            raise InputError(f"--taggers: expected a folder with {name}, found none in {self.taggers}")
        return path.absolute()


Results = dict[str, dict[str, Result]]
"""Results by name, and by seed or fold."""


def write_result(
    path: Path, result: Result, names: list[str], events: tuple[str, ...], logits: np.ndarray
) -> None:
    """Keep `result` at `path`, and beside it the `logits` [clips, events] of the test clips, as float16."""
    write_logits(path.with_suffix(".npz"), names, events, logits.astype(np.float16))
    with whole_file(path, "w") as file:  # last, since this file says that the cell is done
        file.write(to_json(result) + "\n")


def read_results(folder: Path) -> Results:
    """The results in `folder`; raises InputError if one is damaged."""
    results: Results = {}
    for path in sorted(folder.glob("*.json")):
        if match := _FILE.fullmatch(path.stem):
            of_name = results.setdefault(match["name"], {})
            of_name[match["part"]] = from_json(Result, path.read_text(), str(path))
    return results
