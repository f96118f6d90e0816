"""Recordings in the formats that people have, written by PyAV, and WAV files with any header."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FORMATS = {
    "mp3": ("mp3", "libmp3lame", {}),
    "mp3 without Xing": ("mp3", "libmp3lame", {"write_xing": "0"}),
    "mp3 in wav": ("wav", "libmp3lame", {}),
    "m4a": ("ipod", "aac", {}),
    "m4a, index first": ("ipod", "aac", {"movflags": "faststart"}),
    "alac": ("ipod", "alac", {}),
    "aac": ("adts", "aac", {}),
    "opus": ("ogg", "libopus", {}),
    "webm": ("webm", "libopus", {}),
    "wma": ("asf", "wmav2", {}),
    "wv": ("wv", "wavpack", {}),
    "flac": ("flac", "flac", {}),
    "aiff": ("aiff", "pcm_s16be", {}),
    "au": ("au", "pcm_s16be", {}),
    "caf": ("caf", "pcm_s16be", {}),
    "w64": ("w64", "pcm_s16le", {}),
    "mkv": ("matroska", "pcm_s24le", {}),
    "adpcm in wav": ("wav", "adpcm_ima_wav", {}),
    "mpegts": ("mpegts", "aac", {}),
    "ac3": ("ac3", "ac3", {}),
    "s64 in wav": ("wav", "pcm_s64le", {}),
}
"""Container, codec, and options of the container."""
LOSSLESS = {"alac", "flac", "aiff", "au", "caf", "w64", "mkv", "s64 in wav"}
RATE = 44_100


class _Pipe:
    """What is written can't be changed, so headers don't know lengths."""

    def __init__(self):
        self.content = bytearray()

    def write(self, data):
        self.content += data
        return len(data)


def encode(path: Path, samples, kind, *, piped=False, video=False, bit_rate=None, late=0) -> Path:
    """Write `samples`, float [samples] or [samples, channels] at RATE, in one of FORMATS, to `path`."""
    form, codec, options = FORMATS[kind]
    file = _Pipe() if piped else str(path)
    with av.open(file, "w", format=form, options=options) as container:
        layout = "mono" if samples.ndim == 1 else "stereo"
        sound = container.add_stream(codec, rate=48_000 if codec == "libopus" else RATE, layout=layout)
        if bit_rate or kind == "wma":
            sound.bit_rate = bit_rate or 64_000
        if video:
            pictures = container.add_stream("mpeg4", rate=5)
            pictures.width = pictures.height = 16
            pictures.pix_fmt = "yuv420p"
        values = np.ascontiguousarray(np.atleast_2d(samples.T), np.float32)
        frame = av.AudioFrame.from_ndarray(values, "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = RATE, late * RATE, Fraction(1, RATE)
        size = sound.codec_context.frame_size or 1024
        resampler = av.AudioResampler(sound.format, layout, sound.rate, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(sound.encode(part))
        container.mux(sound.encode(None))
        if video:
            for _ in range(5):
                picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode(None))
    if piped:
        path.write_bytes(file.content)
    return path


class Trickle(io.BytesIO):
    """A pipe that delivers a few bytes at a time."""

    def __init__(self, content, most):
        super().__init__(content)
        self.most = most

    def read(self, size=-1):
        return super().read(min(size, self.most))


def stairs(seconds=3.0):
    """A tone whose level rises from quarter second to quarter second, float32 [samples] at RATE."""
    time = np.arange(round(seconds * RATE)) / RATE
    return ((0.1 + 0.2 * (4 * time).astype(int) / seconds) * np.sin(2 * np.pi * 441 * time)).astype(
        np.float32
    )


def levels(samples, seconds=3.0):
    """The level of each quarter second of `stairs`, between its edges, which encoders shift."""
    steps = samples[: round(seconds * RATE)].reshape(-1, RATE // 4)[:, RATE // 16 : -RATE // 16]
    return np.sqrt(2 * np.mean(np.square(steps), axis=1))


def chunk(name: bytes, content: bytes, *, size=None, pad=True, order="<") -> bytes:
    """A chunk of a WAV file, with any size in its header."""
    size = len(content) if size is None else size
    return struct.pack(f"{order}4sI", name, size) + content + b"\0" * (pad and len(content) % 2)


def wav(
    data: bytes, *more, before=(), kind=b"RIFF", size=None, form=1, channels=1, bits=16, pad=True
) -> bytes:
    """A WAV file with the samples `data`, `size` in the header of their chunk, chunks before and after."""
    order = ">" if kind == b"RIFX" else "<"
    frame = channels * bits // 8
    fields = struct.pack(f"{order}HHIIHH", form, channels, 16_000, 16_000 * frame, frame, bits)
    chunks = [
        *before,
        chunk(b"fmt ", fields, order=order),
        chunk(b"data", data, size=size, pad=pad, order=order),
    ]
    content = b"WAVE" + b"".join([*chunks, *more])
    return kind + struct.pack(f"{order}I", min(len(content), 0xFFFFFFFF)) + content


SOUND_16K = np.random.default_rng(0).uniform(-0.9, 0.9, 16_000)
"""Noise whose samples are the same at any rate that a test gives them."""
