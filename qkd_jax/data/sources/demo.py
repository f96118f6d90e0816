"""The demo's recordings: synthesised, in the layout that the manifest source reads.

Three events, `siren`, `bell` and `knock`, in coloured noise, beside distractors that share single
properties with them.  Length, level and position have the same distribution for every sound, so that
none of them reveals an event.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np

from qkd_jax.config import DemoData, ManifestData
from qkd_jax.data.clips import SPLITS, Clip
from qkd_jax.data.sources.manifest import read_manifest
from qkd_jax.system.devices import is_first, wait_for_all
from qkd_jax.system.files import whole_file
from qkd_jax.system.interrupt import stop_if_asked
from qkd_jax.system.progress import track

EVENTS = ("siren", "bell", "knock")
_DISTRACTORS = ("tone", "hiss", "hum")
_SAMPLE_RATE = 16_000
_SOUNDS_PER_CLIP = 3


def read_demo(config: DemoData) -> list[Clip]:
    """The demo's clips, which are made first if they are missing."""
    if is_first():
        make_demo(config)
    wait_for_all("demo")
    return read_manifest(ManifestData(root=config.root))


def make_demo(config: DemoData) -> None:
    """Write `config.counts` recordings and the manifest under `config.root`, unless they are there.

    Deterministic.  The manifest is written last, so a folder that has one is complete.  Recordings made
    with other settings are replaced.
    """
    import soundfile

    assert config.root is not None
    root = Path(config.root)
    manifest, made_with = root / "metadata.csv", root / "made-with.json"
    settings = json.dumps([config.counts, config.clip_seconds])
    if not made_with.is_file() or made_with.read_bytes() != settings.encode():
        manifest.unlink(missing_ok=True)
        with whole_file(made_with, "w") as file:
            file.write(settings)
    if manifest.is_file():
        return
    names = [(split, index) for split, count in zip(SPLITS, config.counts) for index in range(count)]
    rows = []
    for split, index in track(names, len(names), "making recordings"):
        stop_if_asked()
        rng = np.random.default_rng([SPLITS.index(split), index])
        samples, labels = make_clip(rng, _SAMPLE_RATE, config.clip_seconds)
        name = f"audio/{split}-{index:05}.wav"
        encoded = io.BytesIO()
        soundfile.write(encoded, samples, _SAMPLE_RATE, format="WAV", subtype="PCM_16")
        with whole_file(root / name) as file:
            file.write(encoded.getbuffer())
        rows.append([name, ";".join(labels), split])
    with whole_file(manifest, "w") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "labels", "split"])
        writer.writerows(rows)


def make_clip(rng: np.random.Generator, sample_rate: int, seconds: float) -> tuple[np.ndarray, list[str]]:
    """One recording, float32 [samples] within ±1, and its labels.

    Every clip holds the same number of sounds, each drawn from the events or the distractors.
    """
    length = round(seconds * sample_rate)
    mix = _noise(rng, length, rng.uniform(0, 1.5))
    labels = set()
    for _ in range(_SOUNDS_PER_CLIP):
        kinds = EVENTS if rng.random() < 0.4 else _DISTRACTORS
        kind = kinds[rng.integers(len(kinds))]
        labels.update({kind} & set(EVENTS))
        count = round(length * rng.uniform(0.15, 0.35))
        start = rng.integers(length - count + 1)
        sound = _SOUNDS[kind](rng, np.arange(count) / sample_rate, count)
        sound *= np.sin(np.pi * (np.arange(count) + 0.5) / count) ** 0.5
        level = 10 ** (rng.uniform(-6, 9) / 20)
        mix[start : start + count] += level * sound / np.sqrt(np.mean(sound**2))
    # Knocks have high peaks.  Scaled to equal peaks, clips with knocks would be quieter; scaled to equal RMS,
    # their peaks would be higher.  Limiting, as a recorder does, gives all clips similar peaks and RMS.
    limited = np.tanh(mix / np.sqrt(np.mean(mix**2)))
    gain = 10 ** (rng.uniform(-18, -3) / 20)
    return (gain * limited).astype(np.float32), sorted(labels)


def _noise(rng: np.random.Generator, count: int, slope: float) -> np.ndarray:
    """Noise with RMS 1 and a power spectrum proportional to 1 / frequency^`slope`."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2)
    noise = np.fft.irfft(spectrum, count)
    return noise / np.sqrt(np.mean(noise**2))


def _glide(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """A siren: a tone that swings between two pitches three to six times per second."""
    rate, middle, swing = rng.uniform(3, 6), rng.uniform(700, 2000), rng.uniform(0.15, 0.35)
    turn = np.sin(2 * np.pi * rate * time + rng.uniform(0, 2 * np.pi))
    return np.sin(2 * np.pi * np.cumsum(middle * (1 + swing * turn)) * (time[1] - time[0]))


def _bell(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """A bell: inharmonic partials struck once and dying away, the high ones first."""
    base = rng.uniform(500, 1100)
    ratios = np.array([1, 1.51, 2.02, 2.74, 3.76])
    decay = np.exp(-time[:, None] * ratios * rng.uniform(3, 6))
    return (decay * np.sin(2 * np.pi * base * ratios * time[:, None])).sum(axis=1)


def _knock(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """Knocks: short bursts of noise, eight to sixteen per second."""
    phase = (time * rng.uniform(8, 16)) % 1
    return _noise(rng, count, 0.5) * np.exp(-6 * phase)


def _tone(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """A steady tone in the range of the siren and the bell."""
    return np.sin(2 * np.pi * rng.uniform(500, 2500) * time)


def _hiss(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """The noise of a knock without its rhythm."""
    return _noise(rng, count, 0.5)


def _hum(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """Many partials like a bell's, but harmonic and steady."""
    base = rng.uniform(300, 700)
    return np.sin(2 * np.pi * base * np.arange(1, 6) * time[:, None]).sum(axis=1)


_SOUNDS = {"siren": _glide, "bell": _bell, "knock": _knock, "tone": _tone, "hiss": _hiss, "hum": _hum}
