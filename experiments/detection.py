"""Recall and false alarms an hour of a detector on unbounded audio, by how far its readings look back.

python -m benchmarks.detection --data DIR --model FILE.safetensors [--split test] [--out FILE.json]

The scenes of a split, in an order drawn at random, make one recording of some hours, which is streamed
through the detector as detect.py does.  An event is found if a detection of its class reaches within
half a second of it; a detection that reaches no event is a false alarm.  For each `history_seconds` the
thresholds are those that find a given share of each event: the one with the fewest false alarms is the best.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic.dataclasses import dataclass

from benchmarks.text import markdown
from qkd_jax.audio.reading import read_audio
from qkd_jax.commands.cli import override, run_command
from qkd_jax.data.tables import read_table
from qkd_jax.detector import events, stream
from qkd_jax.detector import file as artefact
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file
from qkd_jax.system.progress import track

TOLERANCE = 0.5
RECALLS = (0.5, 0.6, 0.7)
HISTORIES = (None, 20.0, 10.0, 5.0)
_HALVINGS = 12

References = dict[str, np.ndarray]
"""Onsets and offsets of each event in seconds, [count, 2]."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to stream, and through what."""

    data: str = ""
    """Folder of the scenes: the standard set, with SPLIT/strong.tsv and SPLIT/audio."""
    model: str = ""
    """The detector, as export.py writes it."""
    split: str = "test"
    """Which scenes."""
    scenes: int | None = None
    """How many of them; all by default."""
    out: str | None = None
    """A file to write the figures to, as JSON."""


def found_and_false(
    detections: Sequence[events.Event], references: References
) -> dict[str, tuple[float, int]]:
    """For each event the share of its `references` that was found, and the number of false alarms."""
    scores = {}
    for event, spans in references.items():
        found, false = np.zeros(len(spans), bool), 0
        for detection in detections:
            if detection.event == event:
                reached = (spans[:, 0] - TOLERANCE <= detection.offset) & (
                    spans[:, 1] + TOLERANCE >= detection.onset
                )
                found |= reached
                false += not reached.any()
        scores[event] = float(found.mean()), false
    return scores


def read_scenes(folder: Path, names: Sequence[str], seconds: float, kinds: Sequence[str]) -> References:
    """What is in the recording of the scenes `names`, one after the other, of `seconds` each."""
    place = {name: index * seconds for index, name in enumerate(names)}
    spans: dict[str, list[tuple[float, float]]] = {event: [] for event in kinds}
    columns = ("filename", "onset", "offset", "event_label")
    for _, row in read_table(folder / "strong.tsv", columns, setting="data", delimiter="\t"):
        if row["event_label"] in spans and row["filename"] in place:
            start = place[row["filename"]]
            spans[row["event_label"]].append((start + float(row["onset"]), start + float(row["offset"])))
    for event, found in spans.items():
        if not found:
            raise InputError(f"{folder}: expected scenes with {event}, found none in {len(names)}")
    return {event: np.array(found) for event, found in spans.items()}


def readings(detector: Detector, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """The logits of each step of a stream, [steps, events]."""
    runtime, logits = stream.in_numpy(detector), []
    state = stream.start(runtime)
    for block in blocks:
        state, new = stream.push(runtime, state, block)
        logits.append(new)
    return np.concatenate(logits)


def detections(rule: events.Rule, logits: np.ndarray) -> list[events.Event]:
    """The events of a whole stream."""
    spans, found = events.push(rule, events.start(rule), logits)
    return found + events.finish(rule, spans)


def at_recall(
    detector: Detector, logits: np.ndarray, references: References, recall: float
) -> dict[str, tuple[float, int]]:
    """`found_and_false` with the highest thresholds that find `recall` of each event, by bisection."""

    def scores(logit: np.ndarray) -> dict[str, tuple[float, int]]:
        chosen = dict(zip(detector.events, (1 / (1 + np.exp(-logit))).tolist()))
        detection = dataclasses.replace(detector.detection, thresholds={"given": chosen}, use="given")
        rule = events.rule_of(dataclasses.replace(detector, detection=detection))
        return found_and_false(detections(rule, logits), references)

    low, high = np.full(len(detector.events), -12.0), np.full(len(detector.events), 12.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = np.array([share >= recall for share, _ in scores(middle).values()])
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return scores(low)


def main(arguments: list[str]) -> None:
    """Stream the scenes for each history, and print the tables."""
    settings = override(Settings(), arguments, prog="python -m benchmarks.detection", description=__doc__)
    for name in ("data", "model"):
        if not getattr(settings, name):
            raise InputError(f"--{name}: expected one, got none")
    detector, folder = artefact.load(Path(settings.model)), Path(settings.data) / settings.split
    files = sorted((folder / "audio").glob("*.flac"))
    order = np.random.default_rng(0).permutation(len(files))[: settings.scenes]
    names, rate = [files[index].name for index in order], detector.features.sample_rate
    references = read_scenes(folder, names, detector.clip_seconds, detector.events)
    hours = len(names) * detector.clip_seconds / 3600

    def blocks() -> Iterator[np.ndarray]:
        for name in track(names, len(names), "scenes"):
            yield np.resize(read_audio(folder / "audio" / name, rate), round(detector.clip_seconds * rate))

    by_history, by_point, speed = [], [], 0.0
    for history in HISTORIES:
        detection = dataclasses.replace(detector.detection, history_seconds=history)
        begun = time.perf_counter()
        logits = readings(dataclasses.replace(detector, detection=detection), blocks())
        if history is None:
            speed = hours * 3600 / (time.perf_counter() - begun)
            for point in detection.thresholds:
                chosen = dataclasses.replace(detection, use=point)
                rule = events.rule_of(dataclasses.replace(detector, detection=chosen))
                by_point.append((point, found_and_false(detections(rule, logits), references)))
        by_history.append((history, [at_recall(detector, logits, references, recall) for recall in RECALLS]))
        print(f"history {history or 'all'}: done", flush=True)

    kinds = detector.events

    def rates(scores: dict[str, tuple[float, int]]) -> list[str]:
        each = [scores[event][1] / hours for event in kinds]
        return [f"{np.mean(each):.1f}", *(f"{rate:.1f}" for rate in each)]

    counts = ", ".join(f"{len(references[event])} {event}" for event in kinds)
    print(f"\n{hours:.2f} hours with {counts}; {speed:.0f} times real time\n")
    print("False alarms an hour at equal recall:\n")
    head = ["history", "recall", "average", *kinds]
    rows = [
        [f"{history:g} s" if history else "all", f"{recall:.0%}", *rates(scores)]
        for history, every in by_history
        for recall, scores in zip(RECALLS, every)
    ]
    print(markdown(head, rows))
    print("\nAt the operating points, recall and false alarms an hour:\n")
    points = [
        [point, *(f"{scores[event][0]:.0%}, {scores[event][1] / hours:.1f}" for event in kinds)]
        for point, scores in by_point
    ]
    print(markdown(["point", *kinds], points))
    if settings.out:
        with whole_file(Path(settings.out), "w") as file:
            figures = {"hours": hours, "times_real_time": speed, "history": by_history, "points": by_point}
            file.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
