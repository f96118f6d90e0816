"""A detector on a waveform without end: samples come in pieces, and what it says at each step goes out."""

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from qkd_jax.audio import log_mel_numpy as front_end
from qkd_jax.config import step_samples
from qkd_jax.detector import reference
from qkd_jax.detector.codes import GRID
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError

Cells = tuple[np.ndarray, ...]
"""What an LSTM carries from step to step: h and c of each layer in turn."""


class Runtime(NamedTuple):
    """What computes the steps of `detector`.

    `advance` takes the cells before some steps and just the samples that these read, float32; it gives the
    cells after them, and the logits of each, float32 [steps, events].  `start`: the cells before the first.
    """

    detector: Detector
    start: Cells
    advance: Callable[[Cells, np.ndarray], tuple[Cells, np.ndarray]]


class Stream(NamedTuple):
    """What is carried from one piece to the next.

    `samples`: those that steps to come read, after `skip` more to pass over; `carriers`: the cells of the
    LSTM that is read, and with `history_seconds` of its successor; `steps`: how many there were.
    """

    samples: np.ndarray
    skip: int
    carriers: tuple[Cells, ...]
    steps: int


def in_numpy(detector: Detector) -> Runtime:
    """`detector` as the definition has it."""
    start = reference.start(detector)

    def advance(cells: Cells, samples: np.ndarray) -> tuple[Cells, np.ndarray]:
        codes = reference.input_codes(detector, front_end.log_mel(detector.features, samples))
        state = start._replace(cells=tuple(map(reference.Cell, cells[::2], cells[1::2])))
        state, outputs, _ = reference.advance(detector, state, codes)
        return _flat(state.cells), (outputs / 2.0**GRID).astype(np.float32)

    return Runtime(detector, _flat(start.cells), advance)


def start(runtime: Runtime) -> Stream:
    """The state before the first sample."""
    carriers = 1 if runtime.detector.event_config.history_seconds is None else 2
    return Stream(np.zeros(0, np.float32), 0, (runtime.start,) * carriers, 0)


def push(runtime: Runtime, stream: Stream, samples: np.ndarray) -> tuple[Stream, np.ndarray]:
    """The state after `samples` (float32 [samples], full scale is 1, at the detector's rate), and the
    logits of the steps that these complete, float32 [steps, events].

    However a stream is cut into pieces, the steps are the same, bit for bit; `clock` says when they are.

    With `history_seconds` R, an LSTM starts anew every R / 2, is heard out for R / 2 and then read for R / 2:
    it has heard between R / 2 and R at each reading, but for the first, which has heard all there was.
    """
    detector, half = runtime.detector, _half_history(runtime.detector)
    window, hop = step_samples(detector.features, detector.network)
    unread = np.concatenate([stream.samples, samples[stream.skip :]])
    first, carriers = stream.steps, stream.carriers
    end = first + max((len(unread) - window) // hop + 1, 0)
    at, logits = first, [np.zeros((0, len(detector.events)), np.float32)]
    while at < end:
        until = end
        if half:
            births = _births(detector, at)
            new = [runtime.start] * (births - _births(detector, at - 1))
            carriers = (*carriers, *new)[-len(carriers) :]
            until = min(detector.network.steps((births + 1) * half), end)
        piece = unread[(at - first) * hop :][: (until - at - 1) * hop + window]
        advanced = [runtime.advance(cells, piece) for cells in carriers]
        carriers = tuple(cells for cells, _ in advanced)
        logits.append(advanced[0][1])
        at = until
    done = (end - first) * hop
    # Where hops are longer than what a step reads, the next may start beyond these samples.
    skip = max(stream.skip - len(samples), done - len(unread), 0)
    return Stream(unread[done:], skip, carriers, end), np.concatenate(logits)


def raw_blocks(file: io.RawIOBase, ready: Callable[[], bool] = lambda: True) -> Iterator[np.ndarray]:
    """Samples that come from `file` as nothing but 16-bit little-endian integers, float32 [samples].

    Each block comes as soon as it can be read, and holds all that was read by then.  `ready` waits until
    there is more, or returns False, and no block follows.  Raises InputError if `file` begins as a recording
    does that has a header.
    """
    begun = False
    while ready() and (data := file.read(1 << 16)):
        if not begun and data[:4] in (b"RIFF", b"fLaC", b"OggS"):
            raise InputError(
                "standard input: expected samples without a header, found one; name the recording, or pipe "
                "it through `ffmpeg -i - -f s16le -ac 1 -ar RATE -`"
            )
        begun = True
        if len(data) % 2:
            data += file.read(1) or b""
        yield np.frombuffer(data[: len(data) & ~1], "<i2").astype(np.float32) / 2**15


def _flat(cells: tuple[reference.Cell, ...]) -> Cells:
    return tuple(part for cell in cells for part in cell)


def _births(detector: Detector, step: int) -> int:
    """How often an LSTM began anew before `step`, with `history_seconds`."""
    frames, hop = detector.network.receptive_field, detector.network.stride
    return (step * hop + frames - 1) // _half_history(detector)


def _half_history(detector: Detector) -> int:
    """Half of `history_seconds` in frames; 0 without it."""
    features, seconds = detector.features, detector.event_config.history_seconds
    return max(round(seconds / 2 * features.sample_rate / features.hop_length), 1) if seconds else 0
