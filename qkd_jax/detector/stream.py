"""A detector on an endless waveform: samples come in pieces, and logits go out at each step."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.config import step_samples
from qkd_jax.detector import reference
from qkd_jax.detector.codes import LOGIT_EXPONENT
from qkd_jax.detector.detector import Detector

LSTMState = tuple[np.ndarray, ...]
"""The LSTM's state between two steps: h and c of each layer in turn."""


class Runtime(NamedTuple):
    """A `detector` in the runtime that computes its steps.

    `advance` takes the LSTM's state before some steps, and exactly the samples that these steps read,
    float32; it returns the state after them, and their logits, float32 [steps, events].  `start` is the
    state before the first step.
    """

    detector: Detector
    start: LSTMState
    advance: Callable[[LSTMState, np.ndarray], tuple[LSTMState, np.ndarray]]


class StreamState(NamedTuple):
    """The state between two pieces of a waveform.

    `samples`: those that later steps read, after `skip` more that none does; `lstm`: the state of the LSTM in
    use, and with `history_seconds` also that of its successor; `steps`: the number of steps so far.
    """

    samples: np.ndarray
    skip: int
    lstm: tuple[LSTMState, ...]
    steps: int


def in_numpy(detector: Detector) -> Runtime:
    """`detector` computed by `reference`."""
    start = reference.start(detector)

    def advance(lstm: LSTMState, samples: np.ndarray) -> tuple[LSTMState, np.ndarray]:
        codes = reference.input_codes(detector, log_mel(detector.features, samples))
        state = start._replace(cells=tuple(map(reference.Cell, lstm[::2], lstm[1::2])))
        state, outputs, _ = reference.advance(detector, state, codes)
        return _flat(state.cells), (outputs / 2.0**LOGIT_EXPONENT).astype(np.float32)

    return Runtime(detector, _flat(start.cells), advance)


def start(runtime: Runtime) -> StreamState:
    """The state before the first sample."""
    copies = 1 if runtime.detector.event_config.history_seconds is None else 2
    return StreamState(np.zeros(0, np.float32), 0, (runtime.start,) * copies, 0)


def push(runtime: Runtime, state: StreamState, samples: np.ndarray) -> tuple[StreamState, np.ndarray]:
    """The state after `samples`, and the logits of the steps that these complete, float32 [steps, events].

    `samples` are float32 [samples], full scale 1, at the detector's rate.  However a stream is cut into
    pieces, the logits are the same, bit for bit; `config.step_clock` gives the times of the steps.

    With `history_seconds` R a new LSTM starts every R / 2; its logits are used from R / 2 to R after its
    start.  So each depends on the last R / 2 to R seconds, except that the first LSTM is used from its start.
    """
    detector, half = runtime.detector, _half_history(runtime.detector)
    window, hop = step_samples(detector.features, detector.network)
    unread = np.concatenate([state.samples, samples[state.skip :]])
    first, lstms = state.steps, state.lstm
    end = first + max((len(unread) - window) // hop + 1, 0)
    at, logits = first, [np.zeros((0, len(detector.events)), np.float32)]
    while at < end:
        until = end
        if half:
            # A piece ends where the next LSTM starts: within it, both LSTMs only advance.
            restarts = _restarts(detector, at)
            fresh = [runtime.start] * (restarts - _restarts(detector, at - 1))
            lstms = (*lstms, *fresh)[-len(lstms) :]
            until = min(detector.network.steps((restarts + 1) * half), end)
        piece = unread[(at - first) * hop :][: (until - at - 1) * hop + window]
        advanced = [runtime.advance(lstm, piece) for lstm in lstms]
        lstms = tuple(lstm for lstm, _ in advanced)
        logits.append(advanced[0][1])
        at = until
    done = (end - first) * hop
    # Where a hop is longer than the window, the next step may begin beyond these samples.
    skip = max(state.skip - len(samples), done - len(unread), 0)
    return StreamState(unread[done:], skip, lstms, end), np.concatenate(logits)


def _flat(cells: tuple[reference.Cell, ...]) -> LSTMState:
    return tuple(part for cell in cells for part in cell)


def _restarts(detector: Detector, step: int) -> int:
    """How many times a new LSTM started by the last frame that `step` reads, with `history_seconds`."""
    frames, hop = detector.network.receptive_field, detector.network.stride
    return (step * hop + frames - 1) // _half_history(detector)


def _half_history(detector: Detector) -> int:
    """Half of `history_seconds` in frames, at least 1; 0 without it."""
    features, seconds = detector.features, detector.event_config.history_seconds
    return max(round(seconds / 2 * features.sample_rate / features.hop_length), 1) if seconds else 0
