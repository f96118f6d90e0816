"""A detector on a stream: the reference's steps however it is cut, their times, and their history."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.config import step_clock
from qkd_jax.detector import reference
from qkd_jax.detector.stream import in_numpy, push, start
from tests.detectors import FORMS, random_detector
from tests.streams import sound, steps_of, with_history

SAMPLES = 8000
SOUND = sound(SAMPLES)
RUNTIMES = {form: in_numpy(random_detector(network)) for form, network in FORMS.items()}
EACH = pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)


@EACH
@pytest.mark.parametrize("history", [None, 0.2, 0.13])
def test_steps_are_the_same_however_the_stream_is_cut(runtime, history):
    runtime = with_history(runtime, history)
    whole = steps_of(runtime, SOUND)

    @settings(deadline=None, max_examples=10)
    @example(cuts=range(0, SAMPLES, 70))
    @given(cuts=st.lists(st.integers(0, SAMPLES), max_size=8))
    def check(cuts):
        np.testing.assert_array_equal(steps_of(runtime, SOUND, cuts), whole)

    check()


@EACH
def test_a_steps_time_is_the_centre_of_its_samples(runtime):
    """Its samples end where its logits appear; the first step's begin the stream; all are equally long."""
    state, ends = start(runtime), []
    for end, sample in enumerate(np.split(sound(4500), 4500), 1):
        state, logits = push(runtime, state, sample)
        ends += [end] * len(logits)
    begins = np.array(ends) - ends[0]
    assert len(ends) > 2
    first, step = step_clock(runtime.detector.features, runtime.detector.network)
    np.testing.assert_allclose(first + step * np.arange(len(ends)), (begins + ends) / 2 / 16_000)


@EACH
@pytest.mark.parametrize("seconds", [0.2, 0.13])
def test_with_a_history_logits_come_from_an_lstm_that_started_half_to_one_history_ago(runtime, seconds):
    logits, detector = steps_of(with_history(runtime, seconds), SOUND), runtime.detector
    codes = reference.input_codes(detector, log_mel(detector.features, SOUND))
    half, fresh, expected = round(seconds / 2 / 0.01), reference.start(detector), []
    for begin in range(0, len(codes), half):
        # The LSTM read from here on started half a history ago; the convolutions run over the whole stream.
        restart = max(begin - half, 0)
        state, *_ = reference.advance(detector, fresh, codes[:restart])
        state, *_ = reference.advance(detector, state._replace(cells=fresh.cells), codes[restart:begin])
        expected.append(reference.advance(detector, state, codes[begin : begin + half])[1])
    np.testing.assert_array_equal(logits, np.concatenate(expected) / 512)


@EACH
def test_with_a_history_logits_depend_on_nothing_older_and_on_all_of_the_last_half(runtime):
    one, other, at = sound(12_000), sound(12_000), 3000
    other[:at] = sound(at, seed=1)
    limited, endless = (
        (steps_of(each, one) != steps_of(each, other)).any(axis=1)
        for each in (with_history(runtime, 0.4), runtime)
    )
    first, step = step_clock(runtime.detector.features, runtime.detector.network)
    ago = first + step * np.arange(len(limited)) - at / 16_000
    assert not limited[ago > 0.4 + 0.05].any()
    assert limited[(ago > 0) & (ago < 0.2 - 0.05)].all()
    assert endless[ago > 0.45].any()


@EACH
def test_a_history_shorter_than_a_frame_is_one_frame(runtime):
    detector = runtime.detector
    logits = steps_of(with_history(runtime, 1e-4), sound(4000))
    assert len(logits) == detector.network.steps(detector.features.frames(4000))
