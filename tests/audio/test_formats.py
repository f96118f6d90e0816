"""Recordings as people have them: every sample that is there, or one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qkd_jax.audio.reading import audio_blocks, read_audio
from tests.audio.encoded import FORMATS, LOSSLESS, RATE, encode, levels, stairs
from tests.faults import refused

SOUND = stairs()
PADDING = 0.1 * RATE
PIPED = [kind for kind in FORMATS if kind not in ("m4a", "m4a, index first", "alac", "aiff", "w64")]
"""FFmpeg writes the others to files alone."""


@pytest.mark.parametrize(("kind", "piped"), [*zip(FORMATS, 20 * [False]), *zip(PIPED, 20 * [True])])
def test_every_sample_of_any_format_is_read_whether_its_header_knows_the_length_or_not(tmp_path, kind, piped):
    path = encode(tmp_path / "sound", SOUND, kind, piped=piped)
    samples = read_audio(path, RATE)
    if kind == "wma":  # FFmpeg's encoder drops the last incomplete frame
        samples = np.append(samples, SOUND[len(samples) :])
    assert len(SOUND) <= len(samples) <= len(SOUND) + PADDING
    if kind in LOSSLESS:
        np.testing.assert_allclose(samples, SOUND, atol=2**-15)
    else:
        np.testing.assert_allclose(levels(samples), levels(SOUND), rtol=0.1)


@pytest.mark.parametrize("bit_rate", [48_000, 128_000])
def test_mp3_of_a_constant_bit_rate_without_a_header_is_whole(tmp_path, bit_rate):
    """Libsndfile guesses a length from the bit rate, and refuses the file as cut off."""
    path = encode(tmp_path / "x.mp3", SOUND, "mp3 without Xing", bit_rate=bit_rate)
    np.testing.assert_allclose(levels(read_audio(path, RATE)), levels(SOUND), rtol=0.1)


@pytest.mark.parametrize("kind", ["mp3", "mp3 without Xing", "aac", "opus", "flac", "mpegts"])
def test_recordings_joined_end_to_end_are_read_to_the_end(tmp_path, kind):
    part = encode(tmp_path / "part", SOUND, kind)
    joined = tmp_path / "joined"
    joined.write_bytes(2 * part.read_bytes())
    alone, samples = read_audio(part, RATE), read_audio(joined, RATE)
    assert abs(len(samples) - 2 * len(alone)) < PADDING
    np.testing.assert_allclose(levels(samples), levels(SOUND), rtol=0.1)
    np.testing.assert_allclose(levels(samples[-len(alone) :]), levels(alone), rtol=0.1)


@pytest.mark.parametrize("samples", [4000, 16_000, 30_000])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_vorbis_has_the_samples_that_were_written_also_joined(tmp_path, samples, rate):
    """FFmpeg adds up to 96 samples to short files, or drops up to 128; to joined ones a few more."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, samples)
    soundfile.write(tmp_path / "x.ogg", noise, rate)
    assert len(read_audio(tmp_path / "x.ogg", rate)) == samples
    (tmp_path / "joined.ogg").write_bytes(2 * (tmp_path / "x.ogg").read_bytes())
    assert abs(len(read_audio(tmp_path / "joined.ogg", rate)) - 2 * samples) < 500


@pytest.mark.parametrize("kind", ["mp3", "flac"])
def test_joined_recordings_of_other_rates_are_read_or_refused(tmp_path, kind):
    parts = []
    for index, sound in enumerate((SOUND, np.stack([SOUND, SOUND], axis=1)[::2])):
        soundfile.write(tmp_path / f"{index}.{kind}", sound, RATE // (index + 1))
        parts.append((tmp_path / f"{index}.{kind}").read_bytes())
    (tmp_path / "both").write_bytes(b"".join(parts))
    if kind == "flac":
        with refused("both: expected one rate and number of channels, found several"):
            read_audio(tmp_path / "both", RATE)
        return
    samples = read_audio(tmp_path / "both", RATE)
    assert abs(len(samples) - 2 * len(SOUND)) < PADDING
    np.testing.assert_allclose(levels(samples[-len(SOUND) :]), levels(SOUND), rtol=0.1)


@pytest.mark.parametrize("kind", ["m4a", "wma", "au"])
def test_joined_recordings_of_which_the_first_would_be_read_are_refused(tmp_path, kind):
    content = encode(tmp_path / "part", SOUND, kind).read_bytes()
    (tmp_path / "joined").write_bytes(2 * content)
    with refused("joined: expected one recording, found several joined end to end"):
        read_audio(tmp_path / "joined", RATE)


@pytest.mark.parametrize("form", ["NIST", "VOC"])
def test_formats_of_libsndfile_alone(tmp_path, form):
    soundfile.write(tmp_path / "SA1.WAV", SOUND, RATE, format=form)
    assert len(read_audio(tmp_path / "SA1.WAV", RATE)) == len(SOUND)


def test_integers_of_64_bits_are_read(tmp_path):
    path = encode(tmp_path / "x.wav", SOUND, "s64 in wav")
    np.testing.assert_allclose(read_audio(path, RATE), SOUND, atol=2**-15)


def test_a_videos_sound_track_is_read(tmp_path):
    path = encode(tmp_path / "film.mkv", SOUND, "mkv", video=True)
    np.testing.assert_allclose(read_audio(path, RATE), SOUND, atol=2**-15)


@pytest.mark.parametrize(
    "kind", sorted(FORMATS.keys() - {"aac", "opus", "mpegts", "mp3 without Xing", "ac3"})
)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_recording_that_is_cut_off_is_named(tmp_path, kind, share):
    content = encode(tmp_path / "whole", SOUND, kind).read_bytes()
    (tmp_path / "cut").write_bytes(content[: round(share * len(content))])
    with refused(r"cut: (cut off|expected a recording, found none that FFmpeg can read \(is it cut off\?\))"):
        read_audio(tmp_path / "cut", RATE)


@pytest.mark.parametrize("kind", ["aac", "opus", "mp3 without Xing", "flac"])
def test_what_a_stopped_stream_has_left_is_read(tmp_path, kind):
    content = encode(tmp_path / "whole", SOUND, kind, piped=True).read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    samples = read_audio(tmp_path / "cut", RATE)
    assert 0.3 * len(SOUND) < len(samples) < 0.7 * len(SOUND)


def test_a_damaged_end_is_named(tmp_path):
    content = bytearray(encode(tmp_path / "whole", SOUND, "aac").read_bytes())
    at, frames = 0, []
    while at < len(content):
        frames.append(at)
        at += (content[at + 3] & 3) << 11 | content[at + 4] << 3 | content[at + 5] >> 5
    for start, end in zip(frames[len(frames) // 2 :], frames[len(frames) // 2 + 1 :]):
        content[start + 7 : end] = b"\xff" * (end - start - 7)
    (tmp_path / "damaged").write_bytes(content)
    with refused(r"damaged: (damaged: \d+ packets can't be decoded|expected a recording, found none that)"):
        read_audio(tmp_path / "damaged", RATE)


def test_sound_that_begins_late_in_a_film_is_whole(tmp_path):
    path = encode(tmp_path / "late.mkv", SOUND, "mkv", late=3)
    np.testing.assert_allclose(read_audio(path, RATE), SOUND, atol=2**-15)


@pytest.mark.parametrize("kind", ["flac", "wv", "m4a"])
def test_a_damaged_recording_is_named(tmp_path, kind):
    content = bytearray(encode(tmp_path / "whole", SOUND, kind).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (tmp_path / "damaged").write_bytes(content)
    with refused(r"damaged: (damaged: \d+ packets can't be decoded|cut off|expected a recording)"):
        read_audio(tmp_path / "damaged", RATE)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("channels.m4a", "damaged: expected 44100 Hz and 1 channels, found (44100, 57)"),  # PyAV crashed
        ("streams.ts", "expected a recording, found streams that can't be told apart"),  # IndexError
    ],
)
def test_damaged_files_on_which_pyav_failed_are_refused(name, fault):
    path = Path(__file__).parent / "damaged" / name
    code = "import sys; from qkd_jax.audio.reading import read_audio\n"
    code += "try: read_audio(sys.argv[1])\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{path}: {fault}\n")


@pytest.mark.parametrize("kind", ["aiff", "caf", "w64"])
def test_a_header_that_promises_less_than_there_is_is_refused_or_ignored(tmp_path, kind):
    content = bytearray(encode(tmp_path / "whole", SOUND, kind).read_bytes())
    name = b"SSND" if kind == "aiff" else b"data"
    size = {"aiff": 4, "caf": 8, "w64": 8}[kind]
    start = content.index(name) + (16 if kind == "w64" else 4)
    content[start : start + size] = (2000).to_bytes(size, "little" if kind == "w64" else "big")
    if kind == "aiff":
        frames = content.index(b"COMM") + 10
        content[frames : frames + 4] = (1000).to_bytes(4, "big")
    (tmp_path / "false").write_bytes(content)
    with refused("false: (cut off|expected samples in most of|expected 2000 bytes of samples)"):
        read_audio(tmp_path / "false", RATE)


@pytest.mark.parametrize("codec", ["mp3", "m4a", "flac"])
def test_channels_of_any_format_are_averaged_or_chosen(tmp_path, codec):
    path = encode(tmp_path / "stereo", np.stack([SOUND, 0 * SOUND], axis=1), codec)
    np.testing.assert_allclose(levels(read_audio(path, RATE)), levels(SOUND) / 2, rtol=0.1)
    np.testing.assert_allclose(levels(read_audio(path, RATE, channel=1)), levels(SOUND), rtol=0.1)
    with refused("stereo: expected at least 3 channels, found 2"):
        read_audio(path, RATE, channel=3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_a_file_name_may_be_any_bytes(tmp_path, suffix):
    soundfile.write(tmp_path / f"x.{suffix}", SOUND, RATE)
    name = os.fsdecode(b"%s/q\xff\n%%20#'.%s" % (os.fsencode(tmp_path), suffix.encode()))
    os.rename(tmp_path / f"x.{suffix}", name)
    assert len(read_audio(name, RATE)) == len(SOUND)


def test_decoders_print_nothing(tmp_path):
    """mpg123, by which libsndfile decodes MP3, prints its worries to stderr, past Python."""
    part = encode(tmp_path / "part", SOUND, "mp3")
    (tmp_path / "joined.mp3").write_bytes(2 * part.read_bytes())
    (tmp_path / "junk.mp3").write_bytes(bytes(1000) + part.read_bytes()[:20_000] + b"junk" * 500)
    code = "import sys; from qkd_jax.audio.reading import read_audio\n"
    code += "for path in sys.argv[1:]:\n    try: read_audio(path)\n    except ValueError: pass"
    command = [sys.executable, "-c", code, tmp_path / "joined.mp3", tmp_path / "junk.mp3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_flac_and_vorbis_need_no_pyav_and_other_formats_name_it(tmp_path, monkeypatch):
    whole = {kind: encode(tmp_path / kind, SOUND, kind) for kind in ("flac", "mp3")}
    soundfile.write(tmp_path / "x.ogg", SOUND, RATE)
    soundfile.write(tmp_path / "x.wav", SOUND, RATE, subtype="PCM_24")
    by_av = read_audio(whole["flac"], RATE)
    monkeypatch.setitem(sys.modules, "av", None)
    np.testing.assert_array_equal(read_audio(whole["flac"], RATE), by_av)
    assert (
        len(read_audio(tmp_path / "x.ogg", RATE)) == len(read_audio(tmp_path / "x.wav", RATE)) == len(SOUND)
    )
    with refused("mp3: needs av: pip install av"):
        read_audio(whole["mp3"], RATE)


@pytest.mark.parametrize("place", ["folder", "none", "/dev/zero"])
def test_what_is_no_file_is_said(tmp_path, place):
    (tmp_path / "folder").mkdir()
    found = {"folder": "a folder", "none": "none", "/dev/zero": "a pipe, socket or device"}[place]
    with refused(rf"{place}: expected a recording, found {found}"):
        next(audio_blocks(tmp_path / place))
