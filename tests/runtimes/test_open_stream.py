"""Streams in every runtime: the reference's steps, and the same bits however a stream is cut."""

import dataclasses
import functools
import importlib.util
import shutil
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.config import FeatureConfig
from qkd_jax.config.fields import RuntimeName
from qkd_jax.detector import reference
from qkd_jax.detector.stream import push, start
from qkd_jax.errors import InputError
from qkd_jax.runtimes import _RUNTIMES, onnx, open_stream, write
from tests.detectors import DEEP, FRONT, PLAIN, random_detector
from tests.streams import sound, steps_of, with_history

SAMPLES = 8000
SOUND = sound(SAMPLES)
FORMS = {"sparse": PLAIN, "front": FRONT, "deep": DEEP}
SPARSE = FeatureConfig(win_length=200, hop_length=700, n_fft=256, n_mels=32)
"""Samples between windows are skipped."""
EXACT = ("numpy", "jax", "onnx", "c")
TOOLS = {"c": shutil.which("cc"), "litert": importlib.util.find_spec("litert_converter")}


def runtime_with_tools(name):
    missing = not TOOLS.get(name, True)
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"needs the tools for {name}"))


RUNTIMES = pytest.mark.parametrize("name", [runtime_with_tools(name) for name in (*EXACT, "litert")])
EACH = pytest.mark.parametrize("form", FORMS)


@functools.cache
def detector_of(form, exact=True):
    """A random detector whose inputs are so coarse that no code depends on the last bits of log-mel energies.

    If not `exact`, inputs are fine, and the LSTM forgets, so that a single rounding can't change all later
    steps.
    """
    detector = random_detector(FORMS[form])
    if form == "sparse":
        detector = dataclasses.replace(detector, features=SPARSE)
    if exact:
        return dataclasses.replace(detector, input_exponent=2)
    lstm = (layer._replace(multiplier_h=layer.multiplier_h / 2, cell_exponent=13) for layer in detector.lstm)
    return dataclasses.replace(detector, lstm=tuple(lstm))


@functools.cache
def opened(name, form):
    return open_stream(name, detector_of(form, name in EXACT))


@EACH
@RUNTIMES
def test_steps_equal_the_references(name, form):
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
    whole = steps_of(runtime, SOUND)
    assert len(whole) == runtime.detector.network.steps(runtime.detector.features.frames(SAMPLES))

    @settings(deadline=None, max_examples=3)
    @example(cuts=range(0, SAMPLES, 70))
    @given(cuts=st.lists(st.integers(0, SAMPLES), max_size=8))
    def check(cuts):
        np.testing.assert_array_equal(steps_of(runtime, SOUND, cuts), whole)

    check()


@RUNTIMES
def test_with_a_history_steps_are_numpys(name):
    if name not in EXACT:
        pytest.skip("rounds in its own way")
    for seconds in (1e-4, 0.05, 0.13):  # shorter than a frame, shorter than a step reads, and longer
        expected = steps_of(with_history(opened("numpy", "front"), seconds), sound(16_000))
        logits = steps_of(with_history(opened(name, "front"), seconds), sound(16_000))
        np.testing.assert_array_equal(logits, expected)


@RUNTIMES
def test_streams_take_turns(name):
    """A runtime holds no state of a stream: two interleaved streams give what each gives alone."""
    runtime, sounds = opened(name, "deep"), [sound(SAMPLES, seed) for seed in (1, 2)]
    states, logits = [start(runtime)] * 2, ([], [])
    for begin in range(0, SAMPLES, 800):
        for index, samples in enumerate(sounds):
            states[index], new = push(runtime, states[index], samples[begin : begin + 800])
            logits[index].append(new)
    for samples, found in zip(sounds, logits):
        np.testing.assert_array_equal(np.concatenate(found), steps_of(runtime, samples))


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_converter.mlir.ir", None)
    with pytest.raises(InputError, match="needs litert_converter: pip install --no-deps litert-converter"):
        open_stream("litert", detector_of("sparse"))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(InputError, match=r"needs a C compiler: expected no-such-compiler"):
        open_stream("c", detector_of("sparse"))


def test_every_runtime_is_tested_here():
    assert {*get_args(RuntimeName)} == {*_RUNTIMES} == {*EXACT, "litert"}


def test_the_step_file_of_onnx_is_a_stream(tmp_path):
    detector = detector_of("front")
    write("onnx", detector, tmp_path / "a.onnx")
    runtime = onnx.open_step(detector, tmp_path / "a-step.onnx")
    np.testing.assert_array_equal(steps_of(runtime, SOUND), steps_of(opened("onnx", "front"), SOUND))
