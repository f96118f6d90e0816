"""A detector in a file: it loads as it was saved, and other files are refused with one line that says why."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.config import EventConfig, FeatureConfig, LSTMConfig, QuantConfig
from qkd_jax.detector import file as detector_file
from qkd_jax.detector import reference
from qkd_jax.detector.codes import LinearCodes
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.file import FORMAT, MAX_FILE, check, load, load_provenance, save
from qkd_jax.errors import InputError
from tests.artefacts import as_version_1, joined, with_array, with_document, with_header
from tests.detectors import DEEP, FRONT, PLAIN, random_codes, random_detector, with_bits

EVENT_CONFIG = EventConfig(
    thresholds={"eer": {"dog": 0.25, "baby_cry": 0.1, "gunshot": 0.7}}, use="eer", history_seconds=8.0
)


def assert_same(one, other):
    """Assert equality to the last bit, types included."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other):
            assert_same(left, right)
    elif isinstance(one, Detector):
        for field in dataclasses.fields(Detector):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


@pytest.fixture
def saved(tmp_path):
    """The bytes of the file of a small detector with parts of every kind."""
    save(random_detector(FRONT, mels=8), tmp_path / "saved.safetensors", {"run": "a"})
    return (tmp_path / "saved.safetensors").read_bytes()


@pytest.fixture(params=[2, 1])
def any_version(request, saved):
    """`saved` in each version of the format."""
    return saved if request.param == 2 else as_version_1(saved)


def refusal(folder, data):
    """The message of `load` for a file of these bytes."""
    path = folder / "given.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    message = str(caught.value).removeprefix(f"{path}: ")
    assert message.isprintable() and len(message) <= 1000
    return message


@pytest.mark.parametrize("version", [2, 1])
def test_a_detector_loads_as_it_was_saved(tmp_path, detector, version):
    detector = dataclasses.replace(detector, event_config=EVENT_CONFIG)
    path, provenance = tmp_path / "new" / "a.safetensors", {"run": "runs/é\n", "jax": "0.10"}
    save(detector, path, provenance)
    if version == 1:
        path.write_bytes(as_version_1(path.read_bytes()))
    loaded = load(str(path))
    assert_same(loaded, detector)
    assert load_provenance(path) == load_provenance(str(path)) == provenance
    codes = random_codes(detector, 60)
    got, expected = (reference.advance(of, reference.start(of), codes)[1:] for of in (loaded, detector))
    assert_same(got, expected)
    assert_same(*(reference.clip_logits(of, codes) for of in (loaded, detector)))


BITS = st.integers(2, 8)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    st.sampled_from([PLAIN, FRONT, DEEP]),
    st.tuples(BITS, BITS, BITS),
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_all_bits_and_sizes_load_as_saved(tmp_path_factory, network, bits, seed, mels, events):
    weights, activations, output = bits
    network = with_bits(network, weights, activations)
    network = dataclasses.replace(network, quant=dataclasses.replace(network.quant, output=output))
    detector = random_detector(network, seed=seed, mels=mels, events=events)
    largest = 2 ** (output - 1) - 1
    fewer = {
        name: linear and linear._replace(w=np.clip(linear.w, -largest, largest))
        for name, linear in (("output", detector.output), ("attention", detector.attention))
    }
    detector = dataclasses.replace(detector, **fewer)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save(detector, path)
    assert_same(load(path), detector)


def test_equal_detectors_give_equal_bytes(tmp_path, detector):
    provenance = {str(index): "0" * 64 for index in range(9)}
    for name in "ab":
        save(detector, tmp_path / name, provenance)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_papers_network_at_4_bits_fits_in_2_percent_of_the_teacher(tmp_path):
    network = LSTMConfig(hidden_size=256, quant=QuantConfig.integer(4))
    save(random_detector(network, mels=64), tmp_path / "a", {"run": "runs/paper", "jax": "0.10.2"})
    assert (tmp_path / "a").stat().st_size <= 182_000


def test_the_file_is_as_documented(tmp_path):
    # Read as another program would.
    detector, path = random_detector(FRONT, mels=8), tmp_path / "a.safetensors"
    save(detector, path)
    tensors = safetensors.numpy.load_file(path)
    w_h = detector.lstm[0].w_h
    nibbles = np.stack([tensors["lstm.0.w_h"] & 15, tensors["lstm.0.w_h"] >> 4], axis=1)
    np.testing.assert_array_equal(nibbles.reshape(w_h.shape).astype(int) - 8, w_h)
    attention = tensors["attention.w"].reshape(-1, 3).astype(int) - 128
    np.testing.assert_array_equal(attention, detector.attention.w)
    np.testing.assert_array_equal(tensors["front.2.multiplier"], detector.front[2].multiplier)
    with safetensors.safe_open(path, "numpy") as file:
        (text,) = file.metadata().values()
    digits = text.split('"sha256": "')[1][:64]
    zeros = path.read_bytes().replace(digits.encode(), b"0" * 64)
    assert hashlib.sha256(zeros).hexdigest() == digits


def test_no_field_of_a_detector_is_left_out():
    # A field with a default would silently get it.
    arrays = {"mean", "std", "front", "lstm", "output", "attention"}
    stored = {field.name for field in dataclasses.fields(detector_file._Settings)} - {"cell_exponents"}
    assert {field.name for field in dataclasses.fields(Detector)} == stored | arrays


def test_arrays_may_have_any_memory_layout(tmp_path):
    detector = random_detector(PLAIN, mels=8)
    scattered = dataclasses.replace(
        detector,
        mean=np.repeat(detector.mean, 2)[::2],
        std=detector.std[::-1].copy()[::-1],
        lstm=(detector.lstm[0]._replace(w_x=np.asfortranarray(detector.lstm[0].w_x)),),
    )
    save(scattered, tmp_path / "a")
    assert_same(load(tmp_path / "a"), detector)


def test_every_changed_byte_and_every_truncation_is_detected(tmp_path, any_version):
    data, rng = any_version, np.random.default_rng(0)
    for at in [*range(100), *rng.choice(len(data), 300, replace=False)]:
        refusal(tmp_path, data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1 :])
    for end in [*range(100), *rng.choice(len(data), 100, replace=False), len(data) - 1]:
        refusal(tmp_path, data[:end])


def test_paths_without_a_file_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", tmp_path / "no" / "folder"):
        with pytest.raises(InputError, match=f"^{path}: expected a detector's file, found none$"):
            load(path)
    with pytest.raises(InputError, match="could not be read: File name too long"):
        load(tmp_path / ("a" * 1000))


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path, saved):
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(saved)
    os.truncate(path, 1 << 40)
    with pytest.raises(InputError, match=f"expected a detector of at most {MAX_FILE} bytes, found more"):
        load(path)


OTHER_VERSION = FORMAT.replace("2", "3")
NO_SAFETENSORS = r"\.safetensors file, found other or truncated content"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", rf"expected a detector in a {NO_SAFETENSORS}"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), NO_SAFETENSORS),
        (struct.pack("<Q", 1 << 60) + b"{}", NO_SAFETENSORS),
        (struct.pack("<Q", 1 << 19) + bytes(1 << 20), "metadata of at most 262144 bytes, found 524288"),
        (bytes(99), r"expected a \.safetensors file: "),
        (joined(10_000 * '{"a":', b""), r"expected a \.safetensors file: .*recursion"),
        (joined("[]", b""), r"expected a \.safetensors file: .*"),
        (safetensors.numpy.save({"a": np.zeros(3)}), rf"expected metadata \['{FORMAT}'\], found \[\]"),
        *(
            (safetensors.numpy.save({}, metadata), message)
            for metadata, message in (
                ({"a\n": "{}"}, rf"expected metadata \['{FORMAT}'\], found \['a\\n'\]"),
                ({OTHER_VERSION: ""}, rf"'{FORMAT}'\], found \['{OTHER_VERSION}'\]"),
                ({FORMAT: "", "a": ""}, rf"expected metadata \['{FORMAT}'\], found \["),
                ({FORMAT: "{"}, "metadata: expected valid JSON"),
                ({FORMAT: "[" * 9999}, "metadata: expected valid JSON: recursion limit"),
                ({FORMAT: "{}"}, "metadata: detector: expected a value, found none"),
            )
        ),
    ],
    ids=range(14),  # safetensors orders metadata at random
)  # fmt: skip
def test_other_files_are_refused(tmp_path, data, message):
    assert re.search(message, refusal(tmp_path, data))


def deep_in(tree, path, value):
    """Set the dotted `path` in `tree` to `value`, or delete it for None."""
    *parents, last = path.split(".")
    for step in parents:
        tree = tree[int(step) if step.isdigit() else step]
    if value is None:
        del tree[last]
    else:
        tree[int(last) if last.isdigit() else last] = value


HUGE = 10**4000
LIMITS = {"network.hidden_size": 4096, "features.n_mels": 1024, "features.n_fft": 32768}
LIMITS |= {f"features.{name}": 1 << 20 for name in ("hop_length", "sample_rate")}
LIMITS |= {f"event_config.{name}_seconds": 86400 for name in ("gap", "shortest", "history")}
LIMITS |= {"event_config.median_seconds": 60}
LIMITS |= {"clip_seconds": 86400, "input_exponent": 16, "cell_exponents.0": 13}

SETTINGS = [
    ("network.hidden_size", HUGE, r"network\.hidden_size: expected at most 4096, got 10000"),
    ("network.hidden_size", 17, r"attention\.w: expected uint8 \[51\], got uint8 \[48\]"),
    ("network.hidden_size", 0, r"network\.hidden_size: expected at least 1, got 0"),
    ("network.convolutions.0", HUGE, r"network\.convolutions: expected at most 4096"),
    ("network.convolutions", [4, 6], r"front\.2\.bias: expected none, got int32 \[8\]"),
    ("network.convolutions", [1] * 9999, r"clip_seconds: expected enough for one step, got 2$"),
    ("network.layers", 10**9, r"cell_exponents: expected 1000000000, one per layer, got 1"),
    ("network.pooling", "mean", r"attention\.bias: expected none, got int32 \[3\]"),
    ("network.quant.scheme", "paper", r"network\.quant\.scheme: expected integer, got paper"),
    ("network.quant.weights", 16, r"scheme: expected weights, .* of at most 8 bits"),
    ("network.quant.weights", 5, r"front\.0\.w: expected uint8 \[23\], got uint8 \[18\]"),
    ("network.quant.bits", 4, r"quant\.bits: unknown field"),
    ("features.n_mels", 9, r"lstm\.0\.w_x: expected uint8 \[512\], got uint8 \[256\]"),
    ("features.hop_length", HUGE, r"features\.hop_length: expected at most 1048576"),
    ("features.sample_rate", HUGE, r"sample_rate: expected at most 1048576"),
    ("features.fmax", HUGE, r"features\.fmax: expected a finite number, got 10000"),
    ("features.sample_rate", 8000, r"fmin, fmax: expected fmin < fmax <= sample_rate / 2"),
    ("features.fmin", float("nan"), r"fmin: "),
    ("events", [], r"events: expected at least 1 value"),
    ("events", ["a", "b"], r"attention\.bias: expected int32 \[2\], got int32 \[3\]"),
    ("events", ["a", "b", "b"], r"events: expected each once, got a, b, b"),
    ("events", ["a", "b", ""], r"events\.2: expected at least 1 character"),
    ("events", ["a\n"] * 2, r"events: expected each once, got a\?, a\?$"),
    ("events", [1] * 9999, r"events\.0: expected text, got 1; .{200,1000}$"),
    ("clip_seconds", 0.1649, r"clip_seconds: expected enough for one step, got 0\.1649"),
    ("clip_seconds", "10", r"clip_seconds: expected a number, got '10'"),
    ("input_exponent", -17, r"input_exponent: expected at least -16, got -17"),
    ("cell_exponents.0", 5, r"cell_exponents\.0: expected at least 6, got 5"),
    ("cell_exponents", [], r"cell_exponents: expected 1, one per layer, got 0"),
    ("event_config.thresholds", {"eer": {"cat": 0.5}}, r"eer: expected one for .*, got cat"),
    ("event_config", None, r"detector\.event_config: expected a value, found none"),
    ("x\n\x1b[2J", 1, r"detector\.x\?\?\[2J: unknown field"),
]


VERSION_1 = [
    ("detector.student.units", 10**9, r"metadata: detector: network\.hidden_size: expected at most 4096"),
    ("detector.student.units", "8", r"network\.hidden_size: expected an integer, got '8'"),
    ("detector.student.halvings", 4, r"network: time_strides: expected at most 3"),
    ("detector.student.name", "a", r"network\.name: unknown field"),
    ("detector.student", 3, r"detector\.network: expected a value, found none"),
    ("detector.student", None, r"detector\.network: expected a value, found none"),
    ("detector.detection.gap_seconds", -1.0, r"event_config\.gap_seconds: expected at least"),
    ("detector", [], r"metadata: detector: expected a JSON object, got \[\]"),
    ("sha256", 3, r"metadata: sha256: expected text"),
]


@pytest.mark.parametrize(
    ("version", "path", "value", "message"),
    [
        *((2, f"detector.{path}", value, message) for path, value, message in SETTINGS),
        *(
            (2, f"detector.{path}", value, rf"{path.removeprefix('features.')}: expected at most {limit}")
            for path, limit in LIMITS.items()
            for value in (limit + 1, 10**9)
        ),
        (2, "detector", None, r"detector: expected a value, found none"),
        (2, "provenance", None, r"provenance: expected a value, found none"),
        (2, "provenance.run", 1, r"provenance\.run: expected text, got 1"),
        (2, "sha256", "F" * 65, r"sha256: expected text that matches"),
        (2, "version", 2, r"version: unknown field"),
        *((1, *case) for case in VERSION_1),
    ],
)
def test_invalid_settings_are_refused(tmp_path, saved, version, path, value, message):
    data = saved if version == 2 else as_version_1(saved)
    assert re.search(message, refusal(tmp_path, with_document(data, lambda tree: deep_in(tree, path, value))))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("detector.network.time_strides", 2),
        ("detector.clip_seconds", 0.165),  # one step of three convolutions
        ("detector.clip_seconds", 86400),
        ("detector.event_config.gap_seconds", 86400),
        ("detector.features.n_fft", 1 << 15),
        ("detector.input_exponent", -16),
        ("detector.input_exponent", 16),
        ("detector.cell_exponents.0", 6),
        ("detector.cell_exponents.0", 13),
        ("provenance", {}),
    ],
)
def test_settings_at_their_limits_are_accepted(tmp_path, saved, path, value):
    (tmp_path / "a").write_bytes(with_document(saved, lambda tree: deep_in(tree, path, value)))
    reference.clip_logits(load(tmp_path / "a"), np.full((15, 8), -8, np.int32))


def test_numbers_of_more_digits_than_python_reads_are_refused(tmp_path):
    digits = "1" + 9999 * "0"
    document = f'{{"sha256": {digits}}}'
    assert "metadata: " in refusal(tmp_path, safetensors.numpy.save({}, {FORMAT: document}))
    tensor = f'{{"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "more": {digits}}}'
    assert "a .safetensors file: " in refusal(tmp_path, joined(f'{{"a": {tensor}}}', b"a"))


def std(**fields):
    return lambda header: header["std"].update(**fields)


EMPTY = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop("mean"), r"expected a \.safetensors file: .*offset"),
        (lambda header: deep_in(header, "x", header.pop("std")), r"std: expected float32 \[8\], got none"),
        (lambda header: deep_in(header, "x", EMPTY), r"^x: expected none, got uint8 \[0\]"),
        (std(dtype="I32"), r"std: expected float32 \[8\], got int32 \[8\]"),
        (std(shape=[2, 4]), r"std: expected .* got float32 \[2, 4\]"),
        (std(dtype="BF16", shape=[16]), r"std: expected float32 \[8\], got BF16 \[16\]"),
        (std(dtype="F99"), r"expected a \.safetensors file: .*F99"),
        (std(shape=[2**60, 2**60]), r"expected a \.safetensors file: "),
        (std(shape=[1 << 62]), r"expected a \.safetensors file: "),
        (std(shape=[-8]), r"expected a \.safetensors file: "),
        (std(data_offsets=[0, 1 << 60]), r"expected a \.safetensors file: "),


        (lambda header: header["__metadata__"].update(more="1"), r"expected metadata \['[^']*'\], found \['"),
    ],
)  # fmt: skip
def test_invalid_tensors_are_refused(tmp_path, saved, change, message):
    assert re.search(message, refusal(tmp_path, with_header(saved, change)))


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("mean", np.float32("nan"), "mean: expected finite numbers, got nan"),
        ("mean", np.float32("-inf"), "mean: expected finite numbers, got -inf"),
        ("std", np.float32("inf"), "std: expected finite numbers, got inf"),
        ("std", np.float32(0), "std: expected positive normal numbers, got 0.0"),
        ("std", np.float32(-1), "std: expected positive normal numbers, got -1.0"),
        ("std", np.float32(1e-40), "std: expected positive normal numbers, got 9.9"),
        ("front.1.multiplier", np.float32("nan"), "front.1.multiplier: expected finite numbers, got nan"),
        ("lstm.0.multiplier_h", np.float32("inf"), "lstm.0.multiplier_h: expected finite numbers, got inf"),
        ("lstm.0.multiplier_x", np.float32(1e30), "lstm.0: expected values below 2^29, but they may reach "),
        ("output.bias", np.int32(-(2**31)), "output: expected values below 2^29, but they may reach 2147"),
        ("attention.bias", np.int32(2**29), "attention: expected values below 2^29, but they may reach 536"),
        ("lstm.0.w_h", np.uint8(0xF0), "lstm.0.w_h: expected codes from -7 to 7, got -8 to "),
        ("output.w", np.uint8(0), "output.w: expected codes from -127 to 127, got -128 to "),
    ],
)
def test_invalid_numbers_are_refused(tmp_path, saved, name, number, message):
    assert refusal(tmp_path, with_array(saved, name, number)).startswith(message)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mean", np.float32(-3e38)),
        ("std", np.finfo(np.float32).tiny),
        ("front.1.multiplier", np.float32(-1e-40)),
        ("lstm.0.w_h", np.uint8(0xF1)),
    ],
)
def test_numbers_at_their_limits_are_accepted(tmp_path, saved, name, number):
    (tmp_path / "a").write_bytes(with_array(saved, name, number))
    array = detector_file._arrays(load(tmp_path / "a"))[name].reshape(-1)
    assert array[0] == (number if array.dtype == np.float32 else -7)


def part_of(detector, part):
    name, *index = part.split(".")
    return getattr(detector, name)[int(*index)] if index else getattr(detector, name)


def with_part(detector, part, **arrays):
    name, *index = part.split(".")
    changed = part_of(detector, part)._replace(**arrays)
    if index:
        parts = list(getattr(detector, name))
        parts[int(*index)] = changed
        changed = tuple(parts)
    return dataclasses.replace(detector, **{name: changed})


PARTS = ("front.0", "front.1", "lstm.0", "lstm.1", "output", "attention")


@functools.cache
def wide():
    """A detector with weights and biases of 0 and a hidden size of 1033, enough for sums of 2^24."""
    network = LSTMConfig(convolutions=(58, 1), hidden_size=1033, layers=2, pooling="attention")
    network = dataclasses.replace(network, quant=QuantConfig.integer(8))
    detector = random_detector(network, mels=1, events=1)
    for part in PARTS:
        arrays = {k: v * 0 for k, v in part_of(detector, part)._asdict().items() if k != "cell_exponent"}
        detector = with_part(detector, part, **arrays)
    return detector


def column_of(w, total):
    """`w` with a last column of alternating signs whose absolute values sum to `total`."""
    flat = np.zeros((w.size // w.shape[-1], w.shape[-1]), np.int8)
    sizes = np.clip(total - 127 * np.arange(len(flat)), 0, 127)
    assert sizes.sum() == total
    flat[:, -1] = np.where(np.arange(len(flat)) % 2, sizes, -sizes)
    return flat.reshape(w.shape)


LSTM_PRODUCTS = [("lstm.0", "w_h", 128), ("lstm.1", "w_h", 128), ("lstm.1", "w_x", 128)]


@pytest.mark.parametrize(
    ("part", "name", "x_max"),
    [("front.1", "w", 255), *LSTM_PRODUCTS, ("output", "w", 128), ("attention", "w", 128)],
)
def test_accumulators_stay_below_2_to_the_24(part, name, x_max):
    detector, most = wide(), (2**24 - 1) // x_max
    w, reached = getattr(part_of(detector, part), name), (most + 1) * x_max
    check(with_part(detector, part, **{name: column_of(w, most)}))
    assert reached >= 2**24
    with pytest.raises(InputError, match=f"^{part}: expected accumulators .* may reach {reached}$"):
        check(with_part(detector, part, **{name: column_of(w, most + 1)}))


@pytest.mark.parametrize(("activations", "signed", "unsigned"), [(8, 128, 255), (5, 16, 31)])
def test_values_stay_below_2_to_the_29(activations, signed, unsigned):
    network = dataclasses.replace(FRONT, layers=2, quant=QuantConfig.integer(8, activations))
    detector = random_detector(network, mels=8)
    # The largest x of each product of each part; its weights sum to 100.
    products_of = {
        "front.0": {"w": signed},
        "front.1": {"w": unsigned},
        "lstm.0": {"w_h": signed, "w_x": unsigned},
        "lstm.1": {"w_h": signed, "w_x": signed},
        "output": {"w": signed},
        "attention": {"w": signed},
    }
    assert tuple(products_of) == PARTS
    for part, products in products_of.items():
        codes = part_of(detector, part)
        arrays = {"bias": np.zeros_like(codes.bias)}
        for w in products:
            arrays[w] = column_of(getattr(codes, w), 100)
            arrays[w.replace("w", "multiplier")] = np.full(codes.bias.shape, -1024, np.float32)
        room = 2**29 - 1024 * 100 * sum(products.values())
        for bias in (room - 1, 1 - room, room, -room):
            arrays["bias"][-1] = bias
            changed, too_large = with_part(detector, part, **arrays), abs(bias) == room
            refused = pytest.raises(InputError, match=f"^{part}: expected values .* may reach {2**29}$")
            with refused if too_large else contextlib.nullcontext():
                check(changed)


IN_PAPER = dataclasses.replace(FRONT, quant=QuantConfig.paper(4))


def lstm(detector, **changes):
    return {"lstm": (detector.lstm[0]._replace(**changes),)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"events": ("a", "b")}, r"^attention\.bias: expected int32 \[2\], got int32 \[3\]"),
        (lambda d: {"events": ("a", "a", "b")}, r"^events: expected each once, got a, a, b"),
        (lambda d: {"events": ("a", "b", "\udc80")}, r"^events\.2: expected valid Unicode text"),
        (lambda d: {"mean": d.mean.astype(np.float64)}, r"^mean: expected float32 \[8\], got float64 \[8\]"),
        (lambda d: {"std": -d.std}, r"^std: expected positive normal numbers, got -"),
        (lambda d: {"input_exponent": 17}, r"^input_exponent: expected at most 16, got 17"),
        (lambda d: {"front": d.front[:2]}, r"^front\.2\.bias: expected int32 \[8\], got none"),
        (lambda d: {"attention": None}, r"^attention\.bias: expected int32 \[3\], got none"),
        (lambda d: lstm(d, cell_exponent=14), r"^cell_exponents\.0: .* 13, got 14"),
        (lambda d: {"lstm": d.lstm * 2}, r"^cell_exponents: expected 1, one per layer, got 2"),
        (lambda d: lstm(d, w_x=d.lstm[0].w_x * 0 + 8), r"^lstm\.0\.w_x: expected codes from -7 to 7, got 8"),
        (lambda d: {"output": LinearCodes(*map(np.float32, d.output))}, r"^output\.bias: .* got float32"),
        (lambda d: {"network": IN_PAPER}, r"^network\.quant\.scheme: expected integer, got paper"),
        (lambda d: {"features": FeatureConfig(n_mels=9)}, r"^lstm\.0\.w_x: expected int8 \[16, 64\]"),
    ],
)  # fmt: skip
def test_an_invalid_detector_is_not_saved(tmp_path, change, message):
    detector, path = random_detector(FRONT, mels=8), tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(InputError, match=message):
        save(dataclasses.replace(detector, **change(detector)), path)
    assert path.read_bytes() == b"before"


def test_a_detector_that_could_not_be_loaded_is_not_saved(tmp_path, monkeypatch):
    detector, path = random_detector(PLAIN, mels=8), tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"metadata of at most 262144 bytes, found \d+"):
        save(detector, path, {"log": "x" * (1 << 18)})
    with pytest.raises(InputError, match=r"can't encode character .*surrogates not allowed"):
        save(detector, path, {"path": "\udc80"})
    monkeypatch.setattr(detector_file, "MAX_FILE", 4000)
    with pytest.raises(InputError, match="expected a detector of at most 4000 bytes, found more"):
        save(detector, path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/a\.safetensors: could not be written: "):
        save(detector, tmp_path / "file" / "a.safetensors")
