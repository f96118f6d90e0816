"""Recall and false alarms per hour of a detector on unbounded audio, by the length of its history.

    python -m experiments.detection DATA FILE.safetensors [--scenes N]

The test scenes, in random order, form one recording of some hours, which is streamed through the
detector as by the detect command.  An event counts as found if a detection of its class comes within half a
second of it; a detection that comes near none is a false alarm.  For each `history_seconds` the thresholds
find a given share of each event: the setting with the fewest false alarms is the best.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import argument_parser, markdown
from qkd_jax.audio.reading import read_audio
from qkd_jax.commands.cli import run_command
from qkd_jax.data.tables import read_table
from qkd_jax.detector import events, file, stream
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError
from qkd_jax.system.progress import track

TOLERANCE = 0.5
RECALLS = (0.5, 0.6, 0.7)
HISTORIES = (None, 20.0, 10.0, 5.0)
_BISECTIONS = 12

References = dict[str, np.ndarray]
"""Onsets and offsets of each event in seconds, [count, 2]."""
Scores = dict[str, tuple[float, int]]
"""For each event the share that was found, and the number of false alarms."""


def found_and_false(detections: Sequence[events.Event], references: References) -> Scores:
    """The share of each event's `references` that was found, and its false alarms."""
    scores = {}
    for event, times in references.items():
        found, false = np.zeros(len(times), bool), 0
        for detection in detections:
            if detection.event == event:
                near = (times[:, 0] - TOLERANCE <= detection.offset) & (
                    times[:, 1] + TOLERANCE >= detection.onset
                )
                found |= near
                false += not near.any()
        scores[event] = float(found.mean()), false
    return scores


def read_scenes(folder: Path, names: Sequence[str], seconds: float, kinds: Sequence[str]) -> References:
    """The events of the recording that the scenes `names`, of `seconds` each, form in this order."""
    place = {name: index * seconds for index, name in enumerate(names)}
    times: dict[str, list[tuple[float, float]]] = {event: [] for event in kinds}
    columns = ("filename", "onset", "offset", "event_label")
    for _, row in read_table(folder / "strong.tsv", columns, setting="data", delimiter="\t"):
        if row["event_label"] in times and row["filename"] in place:
            start = place[row["filename"]]
            times[row["event_label"]].append((start + float(row["onset"]), start + float(row["offset"])))
    for event, of_event in times.items():
        if not of_event:
            raise InputError(f"{folder}: expected scenes with {event}, found none in {len(names)}")
    return {event: np.array(of_event) for event, of_event in times.items()}


def stream_logits(detector: Detector, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """The logits of each step of a stream, [steps, events]."""
    runtime, logits = stream.in_numpy(detector), []
    state = stream.start(runtime)
    for block in blocks:
        state, new = stream.push(runtime, state, block)
        logits.append(new)
    return np.concatenate(logits)


def detections(rule: events.EventRule, logits: np.ndarray) -> list[events.Event]:
    """The events of a whole stream."""
    state, over = events.push(rule, events.start(rule), logits)
    return over + events.finish(rule, state)


def at_recall(detector: Detector, logits: np.ndarray, references: References, recall: float) -> Scores:
    """`found_and_false` with the highest thresholds that find `recall` of each event, by bisection."""

    def scores(logit: np.ndarray) -> Scores:
        thresholds = dict(zip(detector.events, (1 / (1 + np.exp(-logit))).tolist()))
        config = dataclasses.replace(
            detector.event_config, thresholds={"bisected": thresholds}, use="bisected"
        )
        rule = events.event_rule(dataclasses.replace(detector, event_config=config))
        return found_and_false(detections(rule, logits), references)

    low, high = np.full(len(detector.events), -12.0), np.full(len(detector.events), 12.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = np.array([share >= recall for share, _ in scores(middle).values()])
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return scores(low)


def main(arguments: list[str]) -> None:
    """Stream the scenes once per history, and print the tables."""
    parser = argument_parser("python -m experiments.detection", __doc__)
    parser.add_argument(
        "data", type=Path, help="folder of the standard set, with test/strong.tsv and test/audio"
    )
    parser.add_argument("model", type=Path, help="exported detector")
    parser.add_argument("--scenes", type=int, help="how many test scenes; all by default")
    options = parser.parse_args(arguments)
    detector, folder = file.load(options.model), options.data / "test"
    files = sorted((folder / "audio").glob("*.flac"))
    order = np.random.default_rng(0).permutation(len(files))[: options.scenes]
    names, rate = [files[index].name for index in order], detector.features.sample_rate
    references = read_scenes(folder, names, detector.clip_seconds, detector.events)
    hours = len(names) * detector.clip_seconds / 3600

    def blocks() -> Iterator[np.ndarray]:
        for name in track(names, len(names), "scenes"):
            yield np.resize(read_audio(folder / "audio" / name, rate), round(detector.clip_seconds * rate))

    by_history, by_point, speed = [], [], 0.0
    for history in HISTORIES:
        config = dataclasses.replace(detector.event_config, history_seconds=history)
        begun = time.perf_counter()
        logits = stream_logits(dataclasses.replace(detector, event_config=config), blocks())
        if history is None:
            speed = hours * 3600 / (time.perf_counter() - begun)
            for point in config.thresholds:
                chosen = dataclasses.replace(detector, event_config=dataclasses.replace(config, use=point))
                scores = found_and_false(detections(events.event_rule(chosen), logits), references)
                by_point.append((point, scores))
        by_history.append((history, [at_recall(detector, logits, references, recall) for recall in RECALLS]))
        print(f"history {history or 'all'}: done", flush=True)

    kinds, rows = detector.events, []
    for history, every in by_history:
        for recall, scores in zip(RECALLS, every):
            rates = [scores[event][1] / hours for event in kinds]
            row = [f"{history:g} s" if history else "all", f"{recall:.0%}", f"{np.mean(rates):.1f}"]
            rows.append([*row, *(f"{rate:.1f}" for rate in rates)])
    points = [
        [point, *(f"{scores[event][0]:.0%}, {scores[event][1] / hours:.1f}" for event in kinds)]
        for point, scores in by_point
    ]
    counts = ", ".join(f"{len(references[event])} {event}" for event in kinds)
    print(f"\n{hours:.2f} hours with {counts}; {speed:.0f} times real time")
    print("\nFalse alarms per hour at equal recall:\n")
    print(markdown(["history", "recall", "average", *kinds], rows))
    print("\nAt the operating points, recall and false alarms per hour:\n")
    print(markdown(["point", *kinds], points))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
