"""From recordings to the table of AUC and EER, as eval.py makes it of an exported student."""

import contextlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.files import CLIP_SECONDS, recordings
from benchmarks.speed.turns import Call, Row, in_turns
from qkd_jax.commands.cli import load_preset
from qkd_jax.commands.evaluate_file import score_file
from qkd_jax.config import DataConfig, FeatureConfig, LSTMConfig
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import Clip, targets
from qkd_jax.data.features import cached_features
from qkd_jax.detector import file as artefact
from qkd_jax.distill.tagger import tagger_logits
from qkd_jax.errors import InputError
from qkd_jax.evaluation.metrics import evaluate
from qkd_jax.evaluation.table import print_table

QUESTION = "From WAV files to the table"
ABOUT = """600 clips of 10 s of noise, 16 bits at 16 kHz, a file each, and their labels, to AUC and EER of
three events, on all cores, nothing cached. Ours is `eval.py FILE.safetensors` without its start: features,
then integers in JAX, compiled anew each time. The peer is YAMNet, 8 bits in LiteRT, run by qkd_jax's code
for taggers: windows of 0.975 s every 0.4875 s, a thread for each core. The models differ, so no logits are
compared: both tables come from `evaluate`, on the same labels, which refuses logits that aren't finite; both
are checked to count every clip and to have finite figures of every event. An untrained student costs what a
trained one does."""
PACKAGES = ("ai-edge-litert", "scikit-learn")
CLIPS = 600
GOAL = 10.0
EVENTS = ("dog", "baby_cry", "gunshot")
MODEL = "yamnet_tfhub_classification.tflite"
BENCHMARKS = Path(__file__).parents[1]
SHARED = Path(os.environ.get("QKD_SHARED", BENCHMARKS.parents[1] / "shared"))

Table = dict[str, Any]
"""What `print_table` takes."""


def labelled(folder: Path, count: int) -> DataConfig:
    """Clips of noise and their table in `folder`, each event in a quarter of them, none in the last."""
    labels = (*EVENTS, "")
    rows = [f"{clip.name},{labels[index % 4]}" for index, clip in enumerate(recordings(folder, count))]
    folder.joinpath("metadata.csv").write_text("\n".join(["filename,labels", *rows, ""]))
    return DataConfig(root=str(folder))


def student(path: Path, settings: LSTMConfig) -> Path:
    """An untrained student at `path`, exported."""
    from benchmarks.runtimes import untrained  # which asks for one thread and no GPU if it comes before JAX

    artefact.save(untrained(settings), path)
    return path


def yamnet(folder: Path) -> Path | None:
    """The settings of the tagger in `folder`, beside its files; None if there is no YAMNet or no LiteRT."""
    files = BENCHMARKS / "yamnet.toml", SHARED / "models" / MODEL, SHARED / "models" / "yamnet_class_map.csv"
    if not (all(file.is_file() for file in files) and importlib.util.find_spec("ai_edge_litert")):
        return None
    for file in files:
        folder.joinpath(file.name).symlink_to(file)
    return folder / files[0].name


def by_student(path: Path, data: DataConfig) -> Table:
    """The table of the student at `path`; what it caches lies in the folder it runs in."""
    return score_file(path, None, data=data, split="test")


def by_tagger(path: Path, data: DataConfig) -> Table:
    """The table of the tagger at `path`."""
    clips = read_clips(data)
    logits = tagger_logits(path, clips, EVENTS, Path("cache"))
    metrics = evaluate(targets(clips, EVENTS), logits, EVENTS)
    found = {path.stem: {"metrics": metrics, "bytes": path.with_name(MODEL).stat().st_size}}
    results = {"split": "test", "clips": len(logits), "models": found}
    print_table(results)
    return results


def check(table: Table, count: int) -> None:
    """Raise InputError unless `table` is of `count` clips and has finite figures of every event."""
    (model,) = table["models"].values()
    figures = [model["metrics"].get(event, {}).get(key, np.nan) for event in EVENTS for key in ("auc", "eer")]
    if table["clips"] != count or not np.isfinite(figures).all():
        raise InputError(f"expected figures of {', '.join(EVENTS)} on {count} clips, found {table}")


def features(clips: Sequence[Clip]) -> None:
    """Compute those of `clips` anew."""
    with tempfile.TemporaryDirectory() as empty, contextlib.redirect_stdout(io.StringIO()):
        cached_features(clips, FeatureConfig(), Path(empty))


def anew(way: Callable[[DataConfig], Table], data: DataConfig, count: int) -> None:
    """Make the table of `count` clips when nothing is cached; raises InputError as `check` does."""
    silent = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty), silent:
        check(way(data), count)


def rows(rounds: int, count: int = CLIPS, settings: LSTMConfig | None = None) -> Iterator[Row]:
    """A student of 4 bits, by default preset `small`'s, beside YAMNet if that is here."""
    settings = settings or load_preset("small", BENCHMARKS.parent / "configs").students["distilled-4"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = labelled(folder, count)
        ways = {"ours": partial(by_student, student(folder / "student.safetensors", settings))}
        if tagger := yamnet(folder):
            ways["YAMNet"] = partial(by_tagger, tagger)
        calls: dict[str, Call] = {name: partial(anew, way, data, count) for name, way in ways.items()}
        calls["features"] = partial(features, read_clips(data))
        took = in_turns(calls, rounds)
    yield Row(
        what=f"{count} clips of {CLIP_SECONDS} s",
        ours="score_file, preset small, 4 bits",
        peer="YAMNet" if tagger else None,
        seconds=took["ours"],
        peer_seconds=took.get("YAMNet", ()),
        at_least=GOAL if tagger else None,
        note=f"{count / np.median(took['ours']):,.0f} clips a second",
    )
    yield Row(what=f"{count} clips of {CLIP_SECONDS} s", ours="of it, features", seconds=took["features"])
