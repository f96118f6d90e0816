"""Exported detectors beside Micro-ACDNet's 8-bit file on fold 4 of ESC-50: accuracy, bytes, time per clip.

    python -m experiments.acdnet ESC50 PEER FILE…

ESC50 is the data set as published, PEER micro_acdnet_int8_esc50_fold4.tflite of the authors' repository
(Mohaimenuzzaman et al. 2023, github.com/mohaimenz/acdnet, MIT), and each FILE an exported detector that was
not trained on fold 4.  The peer gets what its authors' scripts give it: silence cut off at both ends, 20 kHz,
ten crops of 1.5 s over the padded clip, the mean of the outputs.  Each has one thread; decoding and
resampling don't count.  The figures go to docs/results/esc50/acdnet.json.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from benchmarks.common import RESULTS, argument_parser, markdown, processor
from experiments.tables import read_rows
from qkd_jax.audio.reading import read_audio
from qkd_jax.commands.cli import run_command
from qkd_jax.runtimes import open_clip
from qkd_jax.system.files import whole_file
from qkd_jax.system.progress import track

FILE = RESULTS / "esc50/acdnet.json"
FOLD, RATE, PEER_RATE, SAMPLES, CROPS = "4", 16_000, 20_000, 30_225, 10
Classify = Callable[[np.ndarray], str]


def crops(waveform: np.ndarray) -> np.ndarray:
    """The peer's inputs, float32 [crops, samples], of a clip at its rate.

    >>> crops(np.r_[np.zeros(7), np.full(60_000, 0.5), np.zeros(9)]).shape
    (10, 30225)
    """
    heard = np.flatnonzero(np.round(waveform * 2**15))
    inside = waveform[heard[0] : heard[-1] + 1] if len(heard) else waveform
    padded = np.pad(inside, SAMPLES // 2)
    step = (len(padded) - SAMPLES) // (CROPS - 1)
    return np.stack([padded[step * place :][:SAMPLES] for place in range(CROPS)]).astype(np.float32)


def open_peer(path: Path, events: list[str]) -> Classify:
    """Micro-ACDNet's file as a function from a clip at 20 kHz to an event."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (out_scale, out_zero) = taken["quantization"], given["quantization"]

    def classify(waveform: np.ndarray) -> str:
        total = np.zeros(len(events))
        for crop in crops(waveform):
            codes = np.clip(np.round(crop / scale + zero), -128, 127).astype(np.int8)
            interpreter.set_tensor(taken["index"], codes.reshape(taken["shape"]))
            interpreter.invoke()
            outputs = interpreter.get_tensor(given["index"]).ravel().astype(np.float64)
            total += (outputs - out_zero) * out_scale
        return events[int(total.argmax())]

    return classify


def open_own(path: Path) -> Classify:
    """An exported detector as a function from a clip at 16 kHz to an event."""
    exported = open_clip(path)
    samples = round(exported.clip_seconds * RATE)

    def classify(waveform: np.ndarray) -> str:
        return exported.events[int(exported.clip_logits(np.resize(waveform, samples)).argmax())]

    return classify


def measure(data: Path, peer: Path, files: list[Path]) -> list[dict[str, Any]]:
    """Accuracy, bytes and milliseconds per clip of each file."""
    rows = read_rows(data / "meta/esc50.csv")
    by_number = dict(sorted((int(row["target"]), row["category"]) for row in rows))
    models = {peer: (open_peer(peer, list(by_number.values())), PEER_RATE)}
    models |= {file: (open_own(file), RATE) for file in files}
    right, seconds = dict.fromkeys(models, 0), dict.fromkeys(models, 0.0)
    of_fold = [row for row in rows if row["fold"] == FOLD]
    for row in track(of_fold, len(of_fold), "clips"):
        waveform = read_audio(data / "audio" / row["filename"], RATE)
        for file, (classify, rate) in models.items():
            samples = waveform if rate == RATE else soxr.resample(waveform, RATE, rate)
            begun = time.perf_counter()
            right[file] += classify(samples) == row["category"]
            seconds[file] += time.perf_counter() - begun
    return [
        {
            "file": file.name,
            "bytes": file.stat().st_size,
            "accuracy": 100 * right[file] / len(of_fold),
            "milliseconds": 1000 * seconds[file] / len(of_fold),
        }
        for file in models
    ]


def table(path: Path = FILE) -> str:
    """The figures at `path` as a table; "Not measured yet." without them."""
    if not path.is_file():
        return "Not measured yet."
    found = json.loads(path.read_text())
    rows = [
        [each["file"], f"{each['bytes']:,}", f"{each['accuracy']:.2f}", f"{each['milliseconds']:.0f}"]
        for each in found["models"]
    ]
    head = ["file", "bytes", "accuracy on fold 4", "ms per clip of 5 s"]
    return f"{markdown(head, rows)}\n\nOne thread of {found['machine']}."


def main(arguments: list[str]) -> None:
    """Measure, print the table and keep the figures."""
    parser = argument_parser("python -m experiments.acdnet", __doc__)
    parser.add_argument("data", type=Path, help="ESC-50 as published")
    parser.add_argument("peer", type=Path, help="Micro-ACDNet's file of fold 4")
    parser.add_argument("files", nargs="+", type=Path, help="exported detectors")
    options = parser.parse_args(arguments)
    found = {"machine": processor(), "models": measure(options.data, options.peer, options.files)}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(FILE, "w") as file:
        file.write(json.dumps(found, indent=2) + "\n")
    print(table())


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
