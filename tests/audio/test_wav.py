"""WAV files whose headers are wrong about their length."""

import struct

import numpy as np
import pytest
import soundfile

from qkd_jax.audio.encoding import Encoding, samples_of
from qkd_jax.audio.reading import read_audio
from qkd_jax.audio.wav import wav_parts
from tests.audio.encoded import SOUND_16K as SOUND
from tests.audio.encoded import chunk, encode, stairs, wav
from tests.faults import refused

DATA = (SOUND * 2**15).astype("<i2").tobytes()
LIST = chunk(b"LIST", b"INFOISFT\x05\0\0\0sox..\0")


@pytest.fixture
def read(tmp_path):
    def read(content):
        (tmp_path / "x.wav").write_bytes(content)
        return read_audio(tmp_path / "x.wav")

    return read


def expected(data=DATA):
    return np.frombuffer(data, "<i2") / np.float32(2**15)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFF - 36])
def test_lengths_that_pipes_and_killed_recorders_leave_mean_the_rest_of_the_file(read, size):
    np.testing.assert_array_equal(read(wav(DATA, size=size)), expected())


def test_a_killed_recording_may_end_within_a_sample(read):
    np.testing.assert_array_equal(read(wav(DATA + b"\x01", size=0, pad=False)), expected())


@pytest.mark.parametrize(
    "more", [(), (LIST,), (LIST, LIST), (b"TAG" + bytes(125),), (bytes(2000),), (b"\0",)]
)
def test_what_follows_the_samples_is_no_sound(read, more):
    np.testing.assert_array_equal(read(wav(DATA, *more)), expected())


@pytest.mark.parametrize("kind", [b"RF64", b"BW64"])
@pytest.mark.parametrize("long", [0, len(DATA), (1 << 64) - 1])
def test_the_64_bit_length_of_rf64_counts_if_it_is_there(read, kind, long):
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, long, 0, 0))
    content = wav(DATA, before=[sizes], kind=kind, size=0xFFFFFFFF)
    np.testing.assert_array_equal(read(content), expected())
    if long == len(DATA):
        np.testing.assert_array_equal(read(content + LIST), expected())


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("more", [b"", LIST])
def test_lengths_beyond_4_gib_are_those_modulo_2_to_32(tmp_path, turns, more):
    """Libsndfile and FFmpeg read the remainder, a few minutes of a long recording."""
    path = tmp_path / "long.wav"
    content = wav(DATA)
    with open(path, "wb") as file:  # sparse: it takes no space
        file.write(content)
        file.seek(len(content) + (turns << 32))
        file.write(more)
        file.truncate(len(content) + (turns << 32) + len(more))
    with open(path, "rb") as file:
        [part] = wav_parts(file, path)
    assert part.length == len(DATA) + (turns << 32)


@pytest.mark.parametrize("odd", ["before", "after", "samples"])
@pytest.mark.parametrize("pad", [True, False])
def test_the_pad_byte_of_odd_chunks_may_be_missing(tmp_path, read, odd, pad):
    three = chunk(b"note", b"abc", pad=pad)
    if odd == "samples":
        data = np.arange(101, dtype=np.uint8).tobytes()
        content = wav(data, LIST, bits=8, pad=pad)
        np.testing.assert_array_equal(read(content), (np.arange(101) - 128) / np.float32(128))
    else:
        content = wav(DATA, before=[three]) if odd == "before" else wav(DATA, three, LIST)
        np.testing.assert_array_equal(read(content), expected())


@pytest.mark.parametrize("promise", [2, 1000, len(DATA) - 8])
def test_a_promise_smaller_than_the_file_is_refused(read, promise):
    with refused(
        rf"x\.wav: expected {promise} bytes of samples.*found {len(DATA) - promise} more.*ignore_length"
    ):
        read(wav(DATA, size=promise))


@pytest.mark.parametrize("kind", [b"RIFF", b"RF64"])
def test_a_promise_larger_than_the_file_is_a_cut_off_file(read, kind):
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, len(DATA) + 2, 0, 0))
    before, size = ([sizes], 0xFFFFFFFF) if kind == b"RF64" else ([], len(DATA) + 2)
    with refused(rf"x\.wav: cut off: expected {len(DATA) + 2} bytes of samples, found {len(DATA)}"):
        read(wav(DATA, before=before, kind=kind, size=size))


@pytest.mark.parametrize("promise", [3_000_000_000, 0x7FFE0000])
def test_a_cut_off_file_of_gigabytes_is_named(read, promise):
    with refused(rf"x\.wav: cut off: expected {promise} bytes of samples, found {len(DATA)}"):
        read(wav(DATA, size=promise))
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, 2 * promise, 0, 0))
    with refused(rf"x\.wav: cut off: expected {2 * promise} bytes of samples, found {len(DATA)}"):
        read(wav(DATA, before=[sizes], kind=b"RF64", size=0xFFFFFFFF))


def test_silence_at_the_end_is_sound(read):
    np.testing.assert_array_equal(read(wav(bytes(32_000), size=0)), np.zeros(16_000))
    with refused("found 32000 more bytes that are no chunks"):
        read(wav(DATA + bytes(32_000), size=len(DATA)))


def test_a_cut_off_chunk_after_the_samples_does_no_harm(read):
    np.testing.assert_array_equal(read(wav(DATA, LIST[:-3])), expected())


def test_files_joined_end_to_end_are_read_to_the_end(read):
    one, other = wav(DATA, LIST), wav(DATA[:2000])
    np.testing.assert_array_equal(read(one + other), np.append(expected(), expected(DATA[:2000])))
    with refused(r"x\.wav: expected recordings of one encoding, found several"):
        read(one + wav(DATA, form=7, bits=8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav(DATA)[:30], "cut off: expected a chunk 'data' with the samples, found none"),
        (b"RIFF\4\0\0\0WAVE", "cut off: expected a chunk 'data' with the samples, found none"),
        (
            b"RIFF\4\0\0\0WAVE" + chunk(b"data", DATA),
            "expected rate and channels in a chunk 'fmt ' before the samples, found none",
        ),
        (wav(b""), "expected samples, found none"),
        (wav(DATA, b"RIFFjunk"), "expected a WAV file at byte"),
        (wav(DATA, channels=0), "expected rate and channels in a chunk 'fmt '"),
    ],
)
def test_a_header_that_makes_no_sense_is_named(read, content, message):
    with refused(rf"x\.wav: {message}"):
        read(content)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize(("form", "endian"), [("WAV", "LITTLE"), ("WAV", "BIG"), ("WAVEX", "LITTLE")])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_those_of_libsndfile(tmp_path, subtype, endian, form, channels):
    sound = np.random.default_rng(0).uniform(-1, 1, (1000, channels))
    soundfile.write(tmp_path / "x.wav", sound, 16_000, subtype=subtype, endian=endian, format=form)
    theirs, _ = soundfile.read(tmp_path / "x.wav", dtype="float32", always_2d=True)
    for channel in range(channels):
        np.testing.assert_array_equal(read_audio(tmp_path / "x.wav", channel=channel + 1), theirs[:, channel])
    np.testing.assert_allclose(read_audio(tmp_path / "x.wav"), theirs.mean(axis=1), atol=1e-7)


def test_a_compressed_wav_of_unknown_length_is_read_to_its_end(tmp_path):
    path = encode(tmp_path / "x.wav", stairs(), "adpcm in wav")
    whole = read_audio(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"data") + 4
    content[start : start + 4] = bytes(4)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_audio(path), whole)


def test_samples_of_24_bits_by_hand():
    data = bytes([0, 0, 0x40, 0xFF, 0xFF, 0xFF, 0, 0, 0x80])
    values = [[0.5], [-(2.0**-23)], [-1.0]]
    np.testing.assert_array_equal(samples_of(data, Encoding("s24", 8000, 1)), values)
    big = bytes([0x40, 0, 0, 0xFF, 0xFF, 0xFF, 0x80, 0, 0])
    np.testing.assert_array_equal(samples_of(big, Encoding("s24", 8000, 1, big_endian=True)), values)
