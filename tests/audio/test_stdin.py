"""Standard input: recordings in any format, and samples without a header."""

import io
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.audio.encoding import Encoding
from qkd_jax.audio.stdin import is_container, stdin_blocks
from qkd_jax.errors import InputError
from tests.audio.encoded import FORMATS, LOSSLESS, RATE, Trickle, chunk, encode, levels, stairs, wav
from tests.faults import refused

SOUND = stairs()
NOISE = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, 5000).astype("<i2")


def heard(content, rate=16_000, most=1 << 20, **options):
    return np.concatenate([*stdin_blocks(Trickle(content, most), rate, **options), np.zeros(0, np.float32)])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("most", [13, 1 << 20])
def test_any_container_is_decoded_or_refused_however_its_first_bytes_arrive(tmp_path, kind, most):
    content = encode(tmp_path / "sound", SOUND, kind).read_bytes()
    try:
        samples = heard(content, RATE, most)
    except InputError:
        assert kind in ("m4a", "alac", "wv")  # FFmpeg looks for what comes last
        with refused("standard input: expected a recording, .*name the file instead"):
            heard(content, RATE, most)
        return
    if kind in LOSSLESS:
        np.testing.assert_allclose(samples, SOUND, atol=2**-15)
    else:
        samples = np.append(samples, SOUND[len(samples) :])  # see test_formats
        np.testing.assert_allclose(levels(samples), levels(SOUND), rtol=0.1)


@pytest.mark.parametrize("kind", ["RF64", "AIFF", "AU", "W64", "OGG", "FLAC", "MP3"])
def test_files_of_libsndfile_are_heard_as_what_they_are(kind):
    """RF64, AIFF, AU and W64 were heard as noise, MP3 as silence."""
    file = io.BytesIO()
    soundfile.write(file, SOUND, RATE, format=kind)
    np.testing.assert_allclose(levels(heard(file.getvalue(), RATE)), levels(SOUND), rtol=0.1)


@pytest.mark.parametrize("kind", [b"RIFF", b"RIFX", b"RF64"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("most", [1, 1 << 20])
def test_wav_files_need_no_pyav(monkeypatch, kind, bits, most):
    """FFmpeg would take the samples of RIFX for little-endian ones."""
    monkeypatch.setitem(sys.modules, "av", None)
    values = NOISE[:101] >> 16 - bits
    data = (values + 128).astype("u1") if bits == 8 else values.astype(">i2" if kind == b"RIFX" else "<i2")
    odd = chunk(b"note", b"abc", order=">" if kind == b"RIFX" else "<")
    content = wav(data.tobytes(), odd, before=[odd], kind=kind, bits=bits)
    np.testing.assert_array_equal(heard(content, most=most), values / np.float32(2 ** (bits - 1)))


@pytest.mark.parametrize(
    "head", [b"\x1f\x8b\x08", b"\x89PNG\r\n", b"NIST_1A\n", b"Creative Voice File\x1a", b"<html>"]
)
def test_other_files_are_refused(head):
    with refused("standard input: expected a recording, found"):
        heard(head + NOISE.tobytes())


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_file_of_unknown_length_is_heard_to_its_end(size):
    data = NOISE.tobytes()
    np.testing.assert_array_equal(heard(wav(data, size=size)), NOISE / np.float32(2**15))


def test_what_follows_a_recording_is_not_lost_without_a_word():
    data = NOISE.tobytes()
    with refused(r"standard input: expected 100 bytes of samples, as the header says, found 9900 more bytes"):
        heard(wav(data, size=100))
    np.testing.assert_array_equal(heard(2 * wav(data)), np.tile(NOISE, 2) / np.float32(2**15))
    with refused("standard input: expected samples in most of"):
        file = io.BytesIO()
        soundfile.write(file, SOUND, RATE, format="W64")
        content = bytearray(file.getvalue())
        start = content.index(b"data") + 16
        content[start : start + 8] = (24 + 1000).to_bytes(8, "little")
        heard(bytes(content))


@pytest.mark.parametrize("form", ["u8", "s16", "s24", "s32", "f32", "f64"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_samples_of_any_encoding_are_those_of_a_file_with_a_header(tmp_path, form, channels, rate):
    sound = np.random.default_rng(0).uniform(-1, 1, (3000, channels))
    subtype = {"u8": "PCM_U8", "f32": "FLOAT", "f64": "DOUBLE"}.get(form, f"PCM_{form[1:]}")
    soundfile.write(tmp_path / "x.wav", sound, rate, subtype=subtype)
    content = (tmp_path / "x.wav").read_bytes()
    start = content.index(b"data") + 8
    samples = content[start : start + sound.size * int(form[1:]) // 8]
    raw = Encoding(form, rate, channels)
    np.testing.assert_allclose(heard(samples, most=7, raw=raw), heard(content), atol=1e-6)
    channel = heard(samples, raw=raw, channel=channels)
    np.testing.assert_allclose(channel, heard(content, channel=channels), atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_pieces_of_any_size_never_shift_by_a_byte(data):
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1))
    channels = data.draw(st.integers(1, 3))

    class Uneven(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, sizes[self.tell() % len(sizes)]))

    count = len(NOISE) // channels * channels
    expected = (NOISE[:count].reshape(-1, channels) / np.float32(2**15)).mean(axis=1)
    blocks = stdin_blocks(Uneven(NOISE[:count].tobytes()), 16_000, raw=Encoding("s16", 16_000, channels))
    np.testing.assert_allclose(np.concatenate(list(blocks)), expected, atol=1e-7)


@pytest.mark.parametrize("rest", [1, 3])
def test_a_stream_that_ends_within_a_sample_says_so(capsys, rest):
    samples = heard(NOISE[:100].tobytes() + b"xyz"[:rest], raw=Encoding("s16", 16_000, 2), channel=1)
    np.testing.assert_array_equal(samples, NOISE[:100:2] / np.float32(2**15))
    assert (
        capsys.readouterr().err == f"standard input: ended within a sample; ignored the last {rest} bytes\n"
    )


def test_a_stopped_stream_continues_with_a_whole_sample():
    """Whoever reads the pipe next would otherwise begin with the second half of a sample."""
    pipe, asked = Trickle(NOISE.tobytes(), 333), iter([True, True, False])
    first = list(stdin_blocks(pipe, 16_000, ready=lambda: next(asked)))
    rest = list(stdin_blocks(pipe, 16_000))
    assert 0 < sum(map(len, first)) < len(NOISE)
    np.testing.assert_array_equal(np.concatenate([*first, *rest]), NOISE / np.float32(2**15))


def test_a_block_comes_as_soon_as_it_can_be_read():
    pipe = Trickle(NOISE.tobytes(), 100)
    blocks = stdin_blocks(pipe, 16_000)
    for read in (100, 200, 300):
        assert len(next(blocks)) == 50 and pipe.tell() == read


def test_samples_are_expected_where_they_were_asked_for():
    with refused("standard input: expected samples without a header, as --rate, .* say, found a recording"):
        heard(wav(NOISE.tobytes()), raw=Encoding("s16", 16_000, 1))
    with refused("standard input: expected samples without a header, as --state needs, found a recording"):
        heard(wav(NOISE.tobytes()), only_raw=True)


def test_an_empty_stream_is_no_sound():
    assert len(heard(b"")) == 0


@settings(deadline=None, max_examples=300)
@given(samples=st.lists(st.integers(-4000, 4000), min_size=4, max_size=40))
def test_samples_are_not_taken_for_a_recording(samples):
    assert not is_container(np.array(samples, "<i2").tobytes() + 8200 * b"\1")
