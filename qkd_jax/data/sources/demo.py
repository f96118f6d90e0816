"""The demo's recordings: synthesised, in the layout that the manifest source reads.

Three events, `siren`, `bell` and `knock`, in coloured noise, beside distractors that share
single traits with them.  Length, level and position of every sound follow one law, whatever
it is, so that none of these tells which event it is or whether there is one.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np

from qkd_jax.config import DataConfig
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


def read_demo(config: DataConfig) -> list[Clip]:
    """The demo's clips, made first if they are not there."""
    if is_first():
        make_demo(config)
    wait_for_all("demo")
    return read_manifest(config)


def make_demo(config: DataConfig) -> None:
    """Write `config.demo_clips` recordings and the manifest under `config.root`, unless they are there.

    Deterministic.  The manifest is written last: a folder that has one is complete.  Recordings
    made with other settings are made anew.
    """
    import soundfile

    assert config.root is not None
    root = Path(config.root)
    manifest, made_with = root / config.manifest, root / "made-with.json"
    settings = json.dumps(
        [config.demo_clips, config.clip_seconds, config.label_separator, _columns(config)], indent=2
    )
    if not made_with.is_file() or made_with.read_bytes() != settings.encode():
        manifest.unlink(missing_ok=True)
        with whole_file(made_with, "w") as file:
            file.write(settings)
    if manifest.is_file():
        return
    names = [(split, index) for split, count in zip(SPLITS, config.demo_clips) for index in range(count)]
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
        rows.append([name, config.label_separator.join(labels), split])
    with whole_file(manifest, "w") as file:
        writer = csv.writer(file, delimiter="\t" if manifest.suffix == ".tsv" else ",")
        writer.writerow(_columns(config))
        writer.writerows(rows)


def _columns(config: DataConfig) -> list[str]:
    return [config.filename_column, config.labels_column, config.split_column]


def make_clip(rng: np.random.Generator, sample_rate: int, seconds: float) -> tuple[np.ndarray, list[str]]:
    """One recording, float32 [samples] within ±1, and its labels.

    Every clip holds the same number of sounds, each an event or a distractor at even odds.
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
    # Knocks are peaky: scaled to one peak a clip with them would be quieter, scaled to one RMS its
    # peak higher.  A recorder that limits its peaks gives all clips about the same of both.
    limited = np.tanh(mix / np.sqrt(np.mean(mix**2)))
    gain = 10 ** (rng.uniform(-18, -3) / 20)
    return (gain * limited).astype(np.float32), sorted(labels)


def _noise(rng: np.random.Generator, count: int, slope: float) -> np.ndarray:
    """Noise of unit RMS whose power falls as frequency to the `slope`."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2)
    noise = np.fft.irfft(spectrum, count)
    return noise / np.sqrt(np.mean(noise**2))


def _glide(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """A siren: a tone that swings between two pitches three to six times a second."""
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
    """Knocks: short bursts of noise at a steady eight to sixteen a second."""
    phase = (time * rng.uniform(8, 16)) % 1
    return _noise(rng, count, 0.5) * np.exp(-6 * phase)


def _tone(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """A steady tone, in the siren's and the bell's range."""
    return np.sin(2 * np.pi * rng.uniform(500, 2500) * time)


def _hiss(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """A knock's noise without its rhythm."""
    return _noise(rng, count, 0.5)


def _hum(rng: np.random.Generator, time: np.ndarray, count: int) -> np.ndarray:
    """A bell's many partials, harmonic and steady."""
    base = rng.uniform(300, 700)
    return np.sin(2 * np.pi * base * np.arange(1, 6) * time[:, None]).sum(axis=1)


_SOUNDS = {"siren": _glide, "bell": _bell, "knock": _knock, "tone": _tone, "hiss": _hiss, "hum": _hum}
