"""A detector on a waveform without end: samples come in pieces, and what it says at each step goes out."""

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from qkd_jax.config import FeatureConfig, InputError, StudentConfig
from qkd_jax.config_sed import CRNNConfig
from qkd_jax.deploy import front_end, reference
from qkd_jax.deploy.detector import Detector
from qkd_jax.nn.codes import GRID


class Stream(NamedTuple):
    """What is carried from one piece to the next.

    `samples`: those still to be read; `carriers`: the state of the detector that is read, and with
    `history_seconds` of its successor; `frames`: how many there were.
    """

    samples: front_end.Samples
    carriers: tuple[reference.State, ...]
    frames: int


class Clock(NamedTuple):
    """Step t is at `first` + t · `step` seconds: the centre of the samples that it covers."""

    first: float
    step: float


def clock(features: FeatureConfig, network: StudentConfig | CRNNConfig) -> Clock:
    """When the steps of `network` are."""
    frames, hop = network.span
    samples = (frames - 1) * features.hop_length + features.win_length
    return Clock(samples / 2 / features.sample_rate, hop * features.hop_length / features.sample_rate)


def start(detector: Detector) -> Stream:
    """The state before the first sample."""
    carriers = 1 if detector.detection.history_seconds is None else 2
    return Stream(front_end.start(), (reference.start(detector),) * carriers, 0)


def push(detector: Detector, stream: Stream, samples: np.ndarray) -> tuple[Stream, np.ndarray]:
    """The state after `samples` (float32 [samples], full scale is 1, at the detector's rate), and the
    logits of the steps that these complete, float32 [steps, events].

    However a stream is cut into pieces, the steps are the same, bit for bit; `clock` says when they are.

    With `history_seconds` R, an LSTM starts anew every R / 2, is heard out for R / 2 and then read for R / 2:
    it has heard between R / 2 and R at each reading, but for the first, which has heard all there was.
    """
    rest, log_mel = front_end.push(detector.features, stream.samples, samples)
    codes = reference.input_codes(detector, log_mel)
    carriers, frames, half = stream.carriers, stream.frames, _half_history(detector)
    cuts = range(half - frames % half, len(codes), half) if half else ()
    outputs = []
    for piece in np.split(codes, cuts):
        advanced = [reference.advance(detector, carrier, piece) for carrier in carriers]
        carriers, frames = tuple(state for state, *_ in advanced), frames + len(piece)
        outputs.append(advanced[0][1])
        if half and len(piece) and frames % half == 0:
            # What convolutions have seen is of no age: the frames that they still need.
            carriers = (carriers[1], carriers[1]._replace(cells=reference.start(detector).cells))
    logits = (np.concatenate(outputs) / 2.0**GRID).astype(np.float32)
    return Stream(rest, carriers, frames), logits


def raw_blocks(file: io.BufferedReader) -> Iterator[np.ndarray]:
    """Samples that come from `file` as nothing but 16-bit little-endian integers, float32 [samples].

    Each block comes as soon as it can be read.  Raises InputError if `file` begins as a recording does that
    has a header.
    """
    if file.peek(4)[:4] in (b"RIFF", b"fLaC", b"OggS"):
        raise InputError(
            "standard input: expected samples without a header, found one; name the recording, or pipe it "
            "through `ffmpeg -i - -f s16le -ac 1 -ar RATE -`"
        )
    half = b""
    while data := file.read1(1 << 16):
        data = half + data
        half = data[len(data) & ~1 :]
        yield np.frombuffer(data[: len(data) & ~1], "<i2").astype(np.float32) / 2**15


def _half_history(detector: Detector) -> int:
    """Half of `history_seconds` in frames; 0 without it."""
    features, seconds = detector.features, detector.detection.history_seconds
    return max(round(seconds / 2 * features.sample_rate / features.hop_length), 1) if seconds else 0
