"""The comparisons of the two sister papers on one set of recordings: several teachers, dual distillation.

python -m benchmarks.sed_tables --data DIR --out DIR [--small] [--tagger FILE.toml] [--only NAME …]

Each model is a run of its own below the second DIR, in the order in which they need one another.  What it
came to, and what a teacher said of the training clips, is kept in DIR/cells, small enough to be committed.
What is there is skipped, whether or not the runs are there too, and what was stopped goes on: for other
settings, give another DIR.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass
from scipy.special import logit

from benchmarks.standard import EVENTS, cell_path
from qkd_jax.commands.cli import override, run_command
from qkd_jax.commands.evaluate import sound_event_metrics
from qkd_jax.config import (
    AugmentConfig,
    CRNNConfig,
    DataConfig,
    FeatureConfig,
    LSTMConfig,
    ModelConfig,
    QuantConfig,
    RunConfig,
    SedTrainConfig,
)
from qkd_jax.data.clips import KINDS, SPLITS
from qkd_jax.data.logits import read_step_logits, write_step_logits
from qkd_jax.data.timed import load_sed_split
from qkd_jax.distill.timed_objectives import fuse, fusion_weights
from qkd_jax.errors import InputError
from qkd_jax.evaluation.prediction import make_detect, step_logits
from qkd_jax.run_folder.folder import load_run
from qkd_jax.run_folder.log import read_epochs
from qkd_jax.system.files import whole_file
from qkd_jax.training.sed_run import train_sed
from qkd_jax.training.sed_teachers import said

LABELLED = 1000  # strongly, and as many weakly
SE_TEACHER = "teacher-se"
TRUNKS: tuple[Literal["resnet", "densenet"], ...] = ("resnet", "densenet")
SEVERAL = ("baseline", "teacher-resnet", "teacher-densenet")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to train on, and how much."""

    data: str = ""
    """Folder of the recordings: the standard set."""
    out: str | None = None
    """Folder of the runs and the cells; runs/sed-full, or runs/sed-small, if none is given."""
    small: bool = False
    """For two cores: one seed, few epochs, small widths; else three seeds and the papers' sizes."""
    tagger: str = ""
    """A tagger whose inner layer guides students (EEFD), named by `layer`; none are without it."""
    only: tuple[str, ...] = ()
    """Which models; all by default."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model by name, what it is and learns from, and those whose cells it takes."""

    name: str
    settings: ModelConfig
    teachers: tuple[str, ...] = ()
    """Models whose cells teach it."""
    quantized: tuple[int, ...] = ()
    """Bits at which it is trained on, each from its best state: of every operand but the cell of a CRNN's
    GRU, of an LSTM's weights in the integer scheme."""

    def all_settings(self, folder: Path, seed: int, further: int) -> dict[str, ModelConfig]:
        """The models of its run: itself, and `further` epochs on quantized ones, and one that isn't."""
        files = tuple(str(cell_path(folder, name, seed).with_suffix(".npz")) for name in self.teachers)
        settings = dataclasses.replace(self.settings, teachers=files)
        found = {self.name: settings}
        lstm = isinstance(settings.network, LSTMConfig)
        on = dataclasses.replace(
            settings, start=self.name, epochs=further, learning_rate=settings.learning_rate / 3
        )
        if self.quantized:
            found[f"{self.name}-32"] = on
        for bits in self.quantized:
            quant = QuantConfig.integer(bits) if lstm else QuantConfig.per_channel(bits)
            network = dataclasses.replace(settings.network, quant=quant)
            found[f"{self.name}-{bits}"] = dataclasses.replace(on, network=network)
        return found


def models(small: bool, tagger: str) -> list[Model]:
    """The models of both comparisons, those first that others need."""
    width = 4 if small else 16
    pools = ((2, 2), (2, 2), *[(1, 2)] * (4 if small else 5), *[(1, 1)] * small)
    channels = tuple(width * each for each in (1, 2, 4, 8, 8, 8, 8))
    third = tuple(width * each for each in (1, 2, 4, 4, 4, 4, 4))

    def crnn(trunk: Any, channels: tuple[int, ...]) -> CRNNConfig:
        dropout = 0.1 if small else 0.5
        return CRNNConfig(trunk=trunk, channels=channels, pools=pools, units=channels[-1], dropout=dropout)

    def detector(network: CRNNConfig | LSTMConfig) -> ModelConfig:
        return ModelConfig(network=network, learning_rate=3e-3 if small else 1e-3)

    found = [
        Model("baseline", detector(crnn("gated", channels))),
        Model(SE_TEACHER, detector(crnn("se", tuple(2 * each for each in channels)))),
    ]
    found += [Model(f"teacher-{trunk}", detector(crnn(trunk, channels))) for trunk in TRUNKS]
    # Dual knowledge distillation: a student of a third of the baseline's parameters, one teacher.
    plain = detector(crnn("se", third))
    mean = dataclasses.replace(plain, through="mean_step")
    found += [
        Model("third", plain),
        Model("third-cdtd", plain, (SE_TEACHER,), (8, 4)),
        Model("third-takd", mean, (SE_TEACHER,), () if tagger else (8, 4)),
        Model("third-ema-ste", dataclasses.replace(plain, through="ema_ste"), (SE_TEACHER,)),
    ]
    if tagger:
        found += [
            Model("third-eefd", dataclasses.replace(plain, embeddings=tagger)),
            Model("third-both", dataclasses.replace(mean, embeddings=tagger), (SE_TEACHER,), (8, 4)),
        ]
    # Several teachers: a student some 50 times smaller than they are together.
    network = crnn("separable", tuple(width * each // 4 for each in (2, 4, 8, 10, 10, 10, 10)))
    # And one that export.py makes integers of: the LSTM behind convolutions of preset `small`, or half of it.
    narrow = 8 if small else 16
    lstm = LSTMConfig(
        convolutions=(narrow, 2 * narrow, 4 * narrow, 4 * narrow),
        time_strides=2,
        hidden_size=8 * narrow,
        pooling="attention",
    )
    alone, lstm_alone = (dataclasses.replace(detector(each), consistency=0.0) for each in (network, lstm))
    told, lstm_told = (dataclasses.replace(each, labels=0.1, teaching=0.9) for each in (alone, lstm_alone))
    return [
        *found,
        Model("tiny", alone),
        Model("tiny-one", told, SEVERAL[:1]),
        Model("tiny-fused", told, SEVERAL, (8, 4)),
        Model("lstm", lstm_alone),
        Model("lstm-fused", lstm_told, SEVERAL, (8, 4)),
    ]


def sed_config(settings: Settings, seed: int) -> RunConfig:
    """The run of a model, but for the model."""
    if not settings.data:
        raise InputError("--data: expected the folder of the recordings, got none")
    features, train = RunConfig().features, SedTrainConfig(epochs=100, seed=seed)
    if settings.small:
        features = FeatureConfig(n_mels=64, win_length=1024, hop_length=320, n_fft=1024, fmin=0.0)
        train = dataclasses.replace(
            train, strong=4, weak=4, unlabelled=4, epochs=16, ramp=0.05, ema_decay=0.995
        )
    return RunConfig(
        runs=settings.out or f"runs/sed-{'small' if settings.small else 'full'}",
        features=features,
        data=DataConfig(source="desed", root=settings.data, events=EVENTS, strong=LABELLED, weak=LABELLED),
        augment=AugmentConfig(mixup=0.2, mixup_share=0.5, time_shift=0.1),
        train=train,
    )


def train_and_keep(base: RunConfig, model: Model, folder: Path) -> None:
    """Train `model` and those quantized from it, and keep their cells, and what a teacher says."""
    seed, begun = base.train.seed, time.monotonic()
    settings = model.all_settings(folder, seed, base.train.epochs // 3)
    if all(cell_path(folder, name, seed).is_file() for name in settings):
        return
    config = dataclasses.replace(base, name=f"{model.name}-seed{seed}", models=settings)
    resumed = Path(config.runs, config.name).is_dir()
    run = load_run(train_sed(config))
    data = {split: load_sed_split(run.config, run.clips, split, run.cache) for split in SPLITS}
    results = json.loads((run.folder / "results.json").read_text())["models"]
    folder.mkdir(parents=True, exist_ok=True)
    if model.name in (SE_TEACHER, *SEVERAL):
        told = said(run, model.name, data)
        write_step_logits(
            cell_path(folder, model.name, seed).with_suffix(".npz"), data["train"].names, EVENTS, told
        )
    for name, row in results.items():
        epochs = read_epochs(run.folder / name)
        best = max(epochs, key=lambda record: (record["valid"]["psds"], record["epoch"]))
        clips = [getattr(base.train, kind) for kind in KINDS]
        more = {"valid": best["valid"], "best_epoch": best["epoch"], "epochs": len(epochs), "clips": clips}
        cell = row | more | {"run_seconds": None if resumed else time.monotonic() - begun}
        with whole_file(cell_path(folder, name, seed), "w") as file:
            file.write(json.dumps(cell, indent=1) + "\n")


def keep_fusion(base: RunConfig, folder: Path) -> None:
    """Score the teachers' fusion on the test clips, if their runs are there, and keep its cell."""
    seed = base.train.seed
    path = cell_path(folder, "fusion", seed)
    runs = [Path(base.runs) / f"{name}-seed{seed}" for name in SEVERAL]
    if path.is_file() or not all((run / "results.json").is_file() for run in runs):
        return
    clips, frames, precisions = [], [], []
    for name, where in zip(SEVERAL, runs):
        run = load_run(where)
        test = load_sed_split(run.config, run.clips, "test", run.cache)
        train = load_sed_split(run.config, run.clips, "train", run.cache)
        network = run.config.networks[name]
        detect, variables = make_detect(run.model(name)), run.best_variables(name)
        clip, steps = step_logits(detect, variables, test, run.config.frames, network)
        told = read_step_logits(cell_path(folder, name, seed).with_suffix(".npz"), train.names, EVENTS)
        clips.append(clip)
        frames.append(np.stack(steps))
        precisions.append(told.precision)
    weights = fusion_weights("precision", np.stack(precisions))
    clip, steps = (
        logit(np.clip(fuse(np.stack(logits).astype(np.float64), weights), 1e-12, 1 - 1e-12))
        for logits in (clips, frames)
    )
    metrics, _ = sound_event_metrics(run.config, network, test, clip, list(steps))
    cells = [json.loads(cell_path(folder, name, seed).read_text()) for name in SEVERAL]
    sums = {key: sum(cell[key] for cell in cells) for key in ("parameters", "multiply_adds", "bytes")}
    with whole_file(path, "w") as file:
        file.write(json.dumps({"metrics": metrics, **sums}, indent=1) + "\n")


def main(arguments: list[str]) -> None:
    """Train and score what there is time for."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.sed_tables", description=__doc__)
    wanted = models(settings.small, settings.tagger and str(Path(settings.tagger).absolute()))
    for name in settings.only:
        if name not in (names := [model.name for model in wanted]):
            raise InputError(f"--only: expected some of {', '.join(names)}, got {name!r}")
    for seed in (0,) if settings.small else (0, 1, 2):
        base = sed_config(settings, seed)
        folder = Path(base.runs).absolute() / "cells"
        for model in wanted:
            if not settings.only or model.name in settings.only:
                train_and_keep(base, model, folder)
        keep_fusion(base, folder)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
