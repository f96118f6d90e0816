"""Streams in every runtime: the definition's steps, and the same bits however they are cut."""

import dataclasses
import functools
import importlib.util
import shutil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.config import EventConfig, FeatureConfig
from qkd_jax.detector import reference
from qkd_jax.detector.stream import push, start
from qkd_jax.errors import InputError
from qkd_jax.runtimes import litert
from qkd_jax.runtimes.streams import open_runtime
from tests.detectors import DEEP, FRONT, PLAIN, random_detector

SAMPLES = 8000
FORMS = {"sparse": PLAIN, "front": FRONT, "deep": DEEP}
SPARSE = FeatureConfig(win_length=200, hop_length=700, n_fft=256, n_mels=32)
"""Samples between windows are passed over."""
EXACT = ("numpy", "jax", "onnx", "c")
TOOLS = {"c": shutil.which("cc"), "litert": importlib.util.find_spec("litert_converter")}
RUNTIMES = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(not TOOLS.get(name, True), reason=f"needs what makes {name}")
        )
        for name in (*EXACT, "litert")
    ],
)
EACH = pytest.mark.parametrize("form", FORMS)


def sound(samples=SAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 0.2, samples) * np.sin(np.arange(samples) / 900) ** 4).astype(np.float32)


@functools.cache
def detector_of(form, exact=True):
    """A random detector of coarse inputs: the last bits, by which front ends differ, turn no code.

    Where that is not `exact`, inputs are fine, and the LSTM forgets, or a rounding would in time change all.
    """
    detector = random_detector(FORMS[form])
    if form == "sparse":
        detector = dataclasses.replace(detector, features=SPARSE)
    if exact:
        return dataclasses.replace(detector, input=2)
    lstm = (layer._replace(multiplier_h=layer.multiplier_h / 2, cell_exponent=13) for layer in detector.lstm)
    return dataclasses.replace(detector, lstm=tuple(lstm))


@functools.cache
def opened(name, form):
    return open_runtime(name, detector_of(form, name in EXACT))


def with_history(runtime, seconds):
    detection = EventConfig(history_seconds=seconds)
    return runtime._replace(detector=dataclasses.replace(runtime.detector, event_config=detection))


def steps_of(runtime, samples, cuts=()):
    state, logits = start(runtime), []
    for piece in np.split(samples, sorted(cuts)):
        state, new = push(runtime, state, piece)
        logits.append(new)
    return np.concatenate(logits)


@EACH
@RUNTIMES
def test_steps_are_those_of_the_definition(name, form):
    runtime, samples = opened(name, form), sound(16_000)
    detector, energies = runtime.detector, log_mel(runtime.detector.features, samples)
    codes = reference.input_codes(detector, energies)
    _, outputs, _ = reference.advance(detector, reference.start(detector), codes)
    logits = steps_of(runtime, samples)
    assert logits.dtype == np.float32 and logits.std(axis=0).min() > 0
    if name in EXACT:
        scaled = (energies - detector.mean) / detector.std * 2.0**detector.input_exponent
        assert abs(scaled % 1 - 0.5).min() > 5e-5  # far enough from a tie
        np.testing.assert_array_equal(logits, outputs / 512)
    else:
        assert np.sqrt(np.mean((logits - outputs / 512) ** 2)) < 0.03


@EACH
@RUNTIMES
@pytest.mark.parametrize("history", [None, 0.13])
def test_steps_are_the_same_bits_however_the_stream_is_cut(name, form, history):
    runtime = with_history(opened(name, form), history)
    whole = steps_of(runtime, sound())
    assert len(whole) == runtime.detector.network.steps(runtime.detector.features.frames(SAMPLES))

    @settings(deadline=None, max_examples=3)
    @example(cuts=range(0, SAMPLES, 70))
    @given(cuts=st.lists(st.integers(0, SAMPLES), max_size=8))
    def check(cuts):
        np.testing.assert_array_equal(steps_of(runtime, sound(), cuts), whole)

    check()


@RUNTIMES
def test_with_a_history_steps_are_numpys(name):
    if name not in EXACT:
        pytest.skip("rounds by its own rule")
    for seconds in (1e-4, 0.05, 0.13):  # shorter than a frame, than what a step reads, and longer
        expected = steps_of(with_history(opened("numpy", "front"), seconds), sound(16_000))
        logits = steps_of(with_history(opened(name, "front"), seconds), sound(16_000))
        np.testing.assert_array_equal(logits, expected)


@RUNTIMES
def test_streams_take_turns(name):
    """A runtime holds nothing of a stream: two at once are as one after the other."""
    runtime, sounds = opened(name, "deep"), [sound(seed=seed) for seed in (1, 2)]
    states, logits = [start(runtime)] * 2, ([], [])
    for begin in range(0, SAMPLES, 800):
        for index, samples in enumerate(sounds):
            states[index], new = push(runtime, states[index], samples[begin : begin + 800])
            logits[index].append(new)
    for samples, found in zip(sounds, logits):
        np.testing.assert_array_equal(np.concatenate(found), steps_of(runtime, samples))


def test_what_is_not_installed_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(litert.importlib, "import_module", missing)
    with pytest.raises(InputError, match="need litert_converter: pip install --no-deps litert-converter"):
        open_runtime("litert", detector_of("sparse"))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(InputError, match=r"needs a C compiler: expected no-such-compiler"):
        open_runtime("c", detector_of("sparse"))
