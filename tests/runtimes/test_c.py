"""The C header, as C99 and C++, under sanitizers and at full speed, computes the reference's integers."""

import dataclasses
import re
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.audio.log_mel import log_mel as log_mel_in_jax
from qkd_jax.audio.log_mel_numpy import log_mel
from qkd_jax.config import FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector import reference
from qkd_jax.errors import InputError
from qkd_jax.runtimes.c import load
from qkd_jax.runtimes.c_header import to_c
from tests.detectors import DEEP, FORMS, FRONT, PLAIN, random_codes, random_detector, with_bits

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")

C99 = ("cc", "-std=c99", "-Wdouble-promotion", "-Wconversion", "-x", "c")
CPP = ("c++", "-std=c++11", "-x", "c++")
SANITIZERS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
SAFE, FAST = ("-O0", *SANITIZERS), ("-O3", "-march=native")

# For each detector, a function that processes codes, windows or a stream, and writes each state.


RUN = """
#include "NAME.h"

static void NAME_print(const NAME_state *s, int32_t steps)
{
    fwrite(s->log_mel, sizeof *s->log_mel, UPPER_MELS, stdout);
    fwrite(&steps, sizeof steps, 1, stdout);
    fwrite(s->output, sizeof *s->output, UPPER_EVENTS, stdout);
    fwrite(s->ATTENTION, sizeof *s->ATTENTION, UPPER_EVENTS, stdout);
}

static void NAME_run(const char *what, int bytes, int chunk)
{
    static NAME_state s;
    float logits[UPPER_EVENTS], probabilities[UPPER_EVENTS];
    int i;
    memset(&s, 99, sizeof s);
    NAME_reset(&s);
    if (!strcmp(what, "about")) {
        printf("%d", (int)sizeof s);
        for (i = 0; i < UPPER_EVENTS; i++)
            printf("%c%s", 0, NAME_events[i]);
        return;
    }
    if (!strcmp(what, "codes"))
        for (i = 0; (i + 1) * UPPER_MELS <= bytes; i++)
            NAME_print(&s, NAME_codes(&s, in.codes + i * UPPER_MELS));
    if (!strcmp(what, "log_mel"))
        for (i = 0; (i + 1) * UPPER_MELS * 4 <= bytes; i++)
            NAME_print(&s, NAME_log_mel(&s, in.floats + i * UPPER_MELS));
    if (!strcmp(what, "windows"))
        for (i = 0; (i * UPPER_HOP + UPPER_WIN) * 4 <= bytes; i++)
            NAME_print(&s, NAME_frame(&s, in.floats + i * UPPER_HOP));
    if (!strcmp(what, "stream"))
        for (i = 0; i * 2 < bytes; i += chunk)
            NAME_print(&s, NAME_push(&s, in.pcm + i, i + chunk < bytes / 2 ? chunk : bytes / 2 - i));
    if (NAME_clip(&s, logits)) {
        for (i = 0; i < UPPER_EVENTS; i++)
            probabilities[i] = NAME_probability(logits[i]);
        fwrite(logits, sizeof *logits, UPPER_EVENTS, stdout);
        fwrite(probabilities, sizeof *logits, UPPER_EVENTS, stdout);
    }
}
"""
MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
static union { int8_t codes[1 << 21]; int16_t pcm[1 << 20]; float floats[1 << 19]; } in;
FUNCTIONS
int main(int argc, char **argv)
{
    const int bytes = (int)fread(&in, 1, sizeof in, stdin);
    if (argc < 4)
        return 1;
    CALLS
    return 0;
}
"""


class Program:
    """Detectors, by the names in their headers, compiled into one program."""

    def __init__(self, folder, detectors, command=C99, flags=SAFE):
        self.detectors, self.path = detectors, folder / "program"
        functions, calls = "", ""
        for name, detector in detectors.items():
            (folder / f"{name}.h").write_text(to_c(detector, name=name))
            attention = "output" if detector.attention is None else "attention"
            run = RUN.replace("NAME", name).replace("UPPER", name.upper())
            functions += run.replace("ATTENTION", attention)
            calls += f'if (!strcmp(argv[1], "{name}")) {name}_run(argv[2], bytes, atoi(argv[3]));\n'
        (folder / "main.c").write_text(MAIN.replace("FUNCTIONS", functions).replace("CALLS", calls))
        flags = (*command, "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", *flags)
        subprocess.run([*flags, "main.c", "-o", "program", "-lm"], cwd=folder, check=True)

    def output(self, what, data=b"", chunk=0, name="qkd"):
        command = [self.path, name, what, str(chunk)]
        done = subprocess.run(command, input=bytes(data), capture_output=True, check=True)
        assert done.stderr == b""
        return done.stdout

    def run(self, what, data, chunk=0, name="qkd"):
        """For each call log_mel, steps, output and attention; and the clip's logits and probabilities."""
        detector = self.detectors[name]
        events = len(detector.events)
        outputs = [("output", "i4", events), ("attention", "i4", events)]
        record = np.dtype([("log_mel", "f4", detector.features.n_mels), ("steps", "i4"), *outputs])
        out = self.output(what, np.ascontiguousarray(data).tobytes(), chunk, name)
        calls = np.frombuffer(out, record, len(out) // record.itemsize)
        clip = np.frombuffer(out[calls.nbytes :], np.float32).reshape(-1, events)
        return calls, clip


def detector_of(network, *, seed=0, mels=32, events=3, cell=10):
    """A random detector; some of its multipliers are negative, and some powers of two, which give ties."""

    def mixed(codes):
        changed = {}
        for name, multiplier in codes._asdict().items():
            if name.startswith("multiplier"):
                column = np.arange(len(multiplier))
                powers = np.exp2(np.rint(np.log2(np.maximum(multiplier, 1e-6))))
                values = np.where(column % 3 == 0, powers, multiplier) * np.where(column % 5 == 1, -1, 1)
                changed[name] = values.astype(np.float32)
        return codes._replace(**changed)

    detector = random_detector(network, seed=seed, mels=mels, events=events)
    front = tuple(map(mixed, detector.front))
    lstm = tuple(mixed(layer)._replace(cell_exponent=cell - 3 * k) for k, layer in enumerate(detector.lstm))
    return dataclasses.replace(detector, front=front, lstm=lstm, output=mixed(detector.output))


def all_sorts_of_codes(detector, *, seed=1):
    """Random codes, then the smallest, the largest, and both in turn."""
    half = 2 ** (detector.network.quant.activations - 1)
    least = np.full((40, detector.features.n_mels), -half)
    mixed = np.where(np.arange(40)[:, None] % 3 == 0, -half, half - 1) * np.ones_like(least)
    return np.concatenate([random_codes(detector, 150, seed=seed), least, -1 - least, mixed])


def assert_equal_reference(calls, clip, detector, codes):
    """Each step's integers equal the reference's, and the clip's logits up to the last bits."""
    _, output, attention = reference.advance(detector, reference.start(detector), codes.astype(np.int32))
    steps = calls[calls["steps"] == 1]
    np.testing.assert_array_equal(steps["output"], output)
    if attention is not None:
        np.testing.assert_array_equal(steps["attention"], attention)
    frames, hop = detector.network.receptive_field, detector.network.stride
    np.testing.assert_array_equal(np.flatnonzero(calls["steps"]), np.arange(frames - 1, len(codes), hop))
    logits = reference.pooled(detector.network.pooling, output, attention)
    np.testing.assert_allclose(clip, [logits, 1 / (1 + np.exp(-logits))], rtol=1e-5, atol=1e-5)


def assert_codes_equal_reference(program, seed=1):
    """The same for each detector of a program, from all sorts of codes."""
    for name, detector in program.detectors.items():
        codes = all_sorts_of_codes(detector, seed=seed)
        assert_equal_reference(*program.run("codes", codes.astype(np.int8), name=name), detector, codes)


@pytest.mark.parametrize("form", FORMS)
def test_codes_equal_the_references_at_any_bits(tmp_path, form):
    activations = FORMS[form].quant.activations
    detectors = {f"w{bits}": detector_of(with_bits(FORMS[form], bits, activations)) for bits in (8, 4, 3, 2)}
    assert_codes_equal_reference(Program(tmp_path, detectors))


@pytest.mark.parametrize(
    ("command", "flags"), [(C99, FAST), (C99, ("-O1",)), (CPP, ("-Os",))], ids=["fast", "O1", "c++"]
)
def test_codes_equal_the_references_with_any_optimisation(tmp_path, command, flags):
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs a compiler, {command[0]}")
    # Cells with an exponent of 13 reach their limits; 33 bands become 17, 9 and 5.
    detectors = {form: detector_of(network, seed=3, mels=33, cell=13) for form, network in FORMS.items()}
    assert_codes_equal_reference(Program(tmp_path, detectors, command, flags))


@st.composite
def networks(draw):
    convolutions = draw(st.lists(st.integers(1, 5), max_size=3))
    return LSTMConfig(
        convolutions=tuple(convolutions),
        time_strides=draw(st.integers(0, len(convolutions))),
        layers=draw(st.integers(1, 2)),
        hidden_size=draw(st.integers(1, 19)),
        pooling=draw(st.sampled_from(["last", "mean", "attention"])),
        quant=QuantConfig.integer(draw(st.integers(2, 8)), draw(st.integers(2, 8))),
    )


@settings(max_examples=8, deadline=None)
@given(network=networks(), seed=st.integers(0, 2**31), mels=st.integers(1, 41), events=st.integers(1, 5))
def test_codes_equal_the_references_at_any_shapes(tmp_path_factory, network, seed, mels, events):
    detector = detector_of(network, seed=seed, mels=mels, events=events)
    program = Program(tmp_path_factory.mktemp("shapes"), {"qkd": detector}, flags=("-O0",))
    assert_codes_equal_reference(program, seed)


def test_output_layers_may_have_few_bits_and_odd_events(tmp_path):
    network = dataclasses.replace(FRONT, quant=dataclasses.replace(FRONT.quant, output=4))
    detector = detector_of(network, events=5)
    output, attention = (part._replace(w=part.w // 19) for part in (detector.output, detector.attention))
    detector = dataclasses.replace(detector, output=output, attention=attention)
    assert_codes_equal_reference(Program(tmp_path, {"qkd": detector}))


PAPER = FeatureConfig()
CONFIGS = {
    "paper": PAPER,
    "whole": FeatureConfig(win_length=512, hop_length=100, n_mels=40, fmin=0.0, fmax=8000.0, floor=1e-3),
    "odd": FeatureConfig(sample_rate=8000, win_length=201, hop_length=67, n_fft=256, n_mels=32, fmax=3900.0),
    "sparse": FeatureConfig(win_length=200, hop_length=700, n_fft=2048, n_mels=17, fmin=900.0),
    "dense": FeatureConfig(win_length=3, hop_length=3, n_fft=4, n_mels=9),
}


def sound(samples, seed=0):
    """Noise between silence and full scale, int16."""
    rng = np.random.default_rng(seed)
    loud = np.sin(np.arange(samples) / 900) ** 8
    return np.rint(rng.uniform(-1, 1, samples) * loud * 32767).astype(np.int16)


@pytest.fixture(scope="module")
def front_ends(tmp_path_factory):
    """A detector for each setting of log-mel energies, all in one program."""
    detectors = {
        name: dataclasses.replace(random_detector(DEEP, mels=features.n_mels), features=features)
        for name, features in CONFIGS.items()
    }
    return Program(tmp_path_factory.mktemp("front_ends"), detectors)


@pytest.mark.parametrize("name", CONFIGS)
def test_log_mel_energies_equal_those_of_training_and_codes_follow_from_them(front_ends, name):
    detector, samples = front_ends.detectors[name], sound(9000) / np.float32(32768)
    calls, clip = front_ends.run("windows", samples, name=name)
    energies = calls["log_mel"]
    expected = log_mel_in_jax(jnp.asarray(samples), detector.features)
    np.testing.assert_allclose(energies, expected, rtol=0, atol=1e-3)
    assert np.ptp(energies) > 5
    assert_equal_reference(calls, clip, detector, reference.input_codes(detector, energies))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stream_gives_the_steps_of_windows_however_it_is_cut(front_ends, name):
    pcm = sound(4000)
    windows, clip = front_ends.run("windows", pcm / np.float32(32768), name=name)
    hop = front_ends.detectors[name].features.hop_length
    for chunk in (1, hop, 1013, 10_000):
        calls, clip_of_stream = front_ends.run("stream", pcm, chunk, name=name)
        np.testing.assert_array_equal(clip_of_stream, clip)
        assert calls["steps"].sum() == windows["steps"].sum()
        for part in ("output", "log_mel"):
            np.testing.assert_array_equal(calls[-1][part], windows[-1][part])
        if chunk <= hop:
            assert calls["steps"].max() == 1
            outputs = (each[each["steps"] == 1]["output"] for each in (calls, windows))
            np.testing.assert_array_equal(*outputs)


def test_energies_between_two_codes_are_rounded_to_the_even_one(tmp_path):
    zeros = np.zeros(32, np.float32)
    detector = dataclasses.replace(random_detector(PLAIN), mean=zeros, std=zeros + 1)
    codes = np.arange(-300, 300).reshape(-1, 1) * np.ones(32) + 0.5
    energies = (codes / 2.0**detector.input_exponent).astype(np.float32)
    calls, clip = Program(tmp_path, {"qkd": detector}).run("log_mel", energies)
    assert_equal_reference(calls, clip, detector, reference.input_codes(detector, energies))


def test_samples_that_are_not_finite_do_no_harm(front_ends):
    samples = np.zeros(1600, np.float32)
    samples[::100] = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0, 1, *[0] * 8]
    calls, clip = front_ends.run("windows", samples, name="paper")
    assert len(calls) == 8 and np.isfinite(clip).all()
    half = 2 ** (DEEP.quant.activations - 1)
    calls, clip = front_ends.run("log_mel", np.full((3, 64), np.float32(np.nan)), name="paper")
    assert_equal_reference(calls, clip, front_ends.detectors["paper"], np.full((3, 64), -half))


def test_before_the_first_step_there_are_no_logits(front_ends):
    calls, clip = front_ends.run("windows", np.zeros(400 + 160, np.float32), name="paper")
    assert calls["steps"].tolist() == [0, 0] and clip.size == 0


def test_attention_that_grows_and_falls_does_not_overflow(tmp_path):
    detector = random_detector(FRONT)
    attention = detector.attention._replace(multiplier=np.full(3, 8, np.float32))
    detector = dataclasses.replace(detector, attention=attention)
    codes = all_sorts_of_codes(detector)
    _, _, attentions = reference.advance(detector, reference.start(detector), codes)
    assert np.ptp(attentions) > 200 * 512  # exp in float32 would overflow
    assert_codes_equal_reference(Program(tmp_path, {"qkd": detector}))


def flash_and_ram(text):
    return [int(re.search(rf"{what}: (\d+) bytes", text)[1]) for what in ("Flash", "RAM")]


@pytest.mark.parametrize("form", FORMS)
def test_flash_and_ram_are_stated(tmp_path, form):
    detector, quant = random_detector(FORMS[form], mels=33), FORMS[form].quant
    flash, ram = flash_and_ram(to_c(detector))
    program = Program(tmp_path, {"qkd": detector}, flags=("-O0",))  # whose compilation checks both
    assert ram - 8 < int(program.output("about").split(b"\0")[0]) <= ram
    whole = random_detector(with_bits(FORMS[form], 8, quant.activations), mels=33)
    weights = [conv.w for conv in detector.front] + [w for layer in detector.lstm for w in layer[:2]]
    # Two codes per byte, except in 8-bit output layers.
    rows = sum(w.shape[-1] // 2 * w[..., 0].size for w in weights)
    assert flash_and_ram(to_c(whole))[0] - flash == (rows if quant.weights <= 4 else 0)


def test_names_of_events_are_kept(tmp_path):
    events = ('say "hi"\\', "what??/", "*/ // %d", "Bébé \U0001f600", "tab\tline\nend", "1\x01" + "1")
    detector = dataclasses.replace(random_detector(PLAIN, events=len(events)), events=events)
    for command in (C99, CPP):
        program = Program(tmp_path, {"qkd": detector}, command, ("-O0",))
        assert program.output("about").decode().split("\0")[1:] == list(events)
    (tmp_path / "x.h").write_text(to_c(detector))
    assert load(tmp_path / "x.h").description.events == events


def test_floats_are_kept_to_the_last_bit():
    detector = random_detector(FRONT)
    text = to_c(detector)
    for name, array in {
        "mean": detector.mean,
        "std": detector.std,
        "conv_2_multiplier": detector.front[1].multiplier,
        "lstm_1_x_multiplier": detector.lstm[0].multiplier_x.reshape(4, -1).T.ravel(),
    }.items():
        found = re.search(rf"qkd_{name}\[{array.size}\] = {{([^}}]*)}}", text)[1]
        np.testing.assert_array_equal(np.float32(found.replace("f", "").split(",")), array)


@pytest.mark.parametrize("form", FORMS)
def test_the_header_runs_here(tmp_path, form):
    detector = dataclasses.replace(detector_of(FORMS[form], mels=64), features=PAPER)
    (tmp_path / "detector.h").write_text(to_c(detector, name="run"))
    runner = load(tmp_path / "detector.h")
    about = runner.description
    assert (about.name, about.events, about.clip_seconds) == ("run", detector.events, 2.0)
    assert (about.features, about.pooling) == (PAPER, detector.network.pooling)
    for seed in (1, 2):
        codes = random_codes(detector, 200, seed=seed)
        _, output, attention = reference.advance(detector, reference.start(detector), codes)
        outputs, attentions = runner.advance(codes)
        np.testing.assert_array_equal(outputs, output)
        assert (attention is None) == (attentions is None)
        np.testing.assert_array_equal(attentions, attention)
        samples = sound(20_000, seed) / np.float32(32768)
        expected = reference.clip_logits(detector, reference.input_codes(detector, log_mel(PAPER, samples)))
        # Energies differ in their last bits, so an input code may differ by one.
        np.testing.assert_allclose(runner.clip_logits(samples), expected, rtol=0, atol=0.1)
    with pytest.raises(InputError, match=r"waveform: expected enough for one step, got 399 samples"):
        runner.clip_logits(samples[:399])


def test_invalid_detectors_and_names_are_refused():
    detector = random_detector(PLAIN)
    for name in ("", "2dogs", "Dog", "a-b", "é", "a b", "qkd\n"):
        with pytest.raises(InputError, match=r"name: expected lower-case letters"):
            to_c(detector, name=name)
    features = dataclasses.replace(detector.features, n_fft=500)
    with pytest.raises(InputError, match=r"n_fft: expected a power of two from 4 to 32768, got 500"):
        to_c(dataclasses.replace(detector, features=features))
    with pytest.raises(InputError, match=r"std: expected positive"):
        to_c(dataclasses.replace(detector, std=detector.std * 0))


def test_other_and_changed_headers_are_refused(tmp_path):
    path, text = tmp_path / "detector.h", to_c(random_detector(PLAIN))
    with pytest.raises(InputError, match=r"detector\.h: expected an exported C header: No such file"):
        load(path)
    damaged = [text.replace(old, new, 1) for old, new in (("32767", "32766"), ('"dog"', '"cat"'))]
    for changed in ("", "int x;\n", text[:-1], *damaged):
        path.write_text(changed)
        with pytest.raises(InputError, match=r"detector\.h: expected a C header as exported"):
            load(path)


def test_a_missing_or_failing_compiler_is_named(tmp_path, monkeypatch):
    path = tmp_path / "detector.h"
    path.write_text(to_c(random_detector(PLAIN)))
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    with pytest.raises(InputError, match=r"detector\.h: needs a C compiler: .*no-such-compiler"):
        load(path)
    monkeypatch.setenv("CC", "cc -ffast-math")
    with pytest.raises(InputError, match=r"detector\.h: cc failed: .*-ffast-math"):
        load(path)
    monkeypatch.setenv("CC", "cc -O1")
    assert load(path).description.name == "qkd"


def test_a_compiler_without_march_native_suffices(tmp_path, monkeypatch):
    script, path = tmp_path / "compiler", tmp_path / "detector.h"
    script.write_text('#!/bin/sh\ncase "$*" in *native*) echo error >&2; exit 1;; esac\nexec cc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    path.write_text(to_c(random_detector(PLAIN)))
    assert load(path).description.name == "qkd"
