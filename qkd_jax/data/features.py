"""Log-mel energies of recordings, each computed once and cached in a file."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from qkd_jax.audio.log_mel import log_mel
from qkd_jax.audio.reading import audio_blocks
from qkd_jax.config import FeatureConfig, to_json
from qkd_jax.data.cache import Entries, cached, read_entry
from qkd_jax.data.clips import Clip
from qkd_jax.errors import InputError

_FORMAT = 3  # raise when the same settings give other features


def cached_features(
    clips: Sequence[Clip], config: FeatureConfig, cache: Path, channel: int | None = None
) -> tuple[Entries, dict[str, str]]:
    """Files in `cache` with each clip's features, float32 [frames, n_mels]; returns as `cached`.

    `channel`, counted from 1, is the one to read; None means the mean of all.
    """
    return cached(
        clips,
        lambda clip: recording_features(clip.path, config, clip.channel(channel)),
        cache,
        settings=f"{_FORMAT} {to_json(config)}" + (f" channel {channel}" if channel else ""),
        width=config.n_mels,
        title="features",
    )


def recording_features(path: Path, config: FeatureConfig, channel: int | None = None) -> np.ndarray:
    """Log-mel energies of one recording, float32 [frames, n_mels], read block by block.

    Raises InputError if it can't be read or is shorter than one window.
    """
    rate, pieces, samples, count = config.sample_rate, [], np.zeros(0, np.float32), 0
    for block in audio_blocks(path, rate, channel=channel):
        count += len(block)
        samples = np.concatenate([samples, block]) if len(samples) else block
        frames = config.frames(len(samples))
        # Padded to whole seconds, so that recordings of many lengths share few compiled shapes.
        padded = jax.device_put(np.pad(samples, (0, -len(samples) % rate)), _host())
        pieces.append(np.asarray(log_mel(padded, config))[:frames])
        samples = samples[frames * config.hop_length :]
    features = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    if not len(features):
        raise InputError(f"{path}: expected at least {config.win_length} samples at {rate} Hz, found {count}")
    return features


class CachedFeatures(Sequence[np.ndarray]):
    """Features in files, mapped on access, so that any number of clips takes little memory.

    With `rows`, each clip has only these of the frames in its file.
    """

    def __init__(self, entries: Sequence[Path], rows: Sequence[slice] | None = None):
        self.entries, self.rows = entries, rows
        # Mapping takes longer than reading a short clip; a process can hold about 65,000 maps.
        self.map = functools.lru_cache(10_000)(read_entry)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index):
        features = self.map(self.entries[index])
        return features if self.rows is None else features[self.rows[index]]


def mean_and_std(features: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each band over all frames (global CMVN), float32 [mels].

    Raises InputError if one of `features` isn't finite.
    """
    count, total, squares = 0, np.zeros(()), np.zeros(())
    with np.errstate(over="ignore", invalid="ignore"):  # callers check the result
        for item in map(finite, features):
            exact = np.asarray(item, np.float64)
            count, total = count + len(item), total + exact.sum(axis=0)
            squares = squares + (exact**2).sum(axis=0)
        mean = total / count
        # A band that never changes carries no information; it must not become infinite.
        std = np.sqrt(np.maximum(squares / count - mean**2, 1e-10))
        return mean.astype(np.float32), std.astype(np.float32)


def finite(features: np.ndarray) -> np.ndarray:
    """`features`; raises InputError, naming the file they are mapped from, if they aren't finite."""
    if not np.isfinite(features).all():
        file = getattr(features, "filename", None)
        raise InputError(
            f"{file or 'features'}: expected finite log-mel energies, found NaN or infinity"
            + ("; delete the file to compute them again" if file else "")
        )
    return features


@functools.cache
def _host() -> jax.Device | None:
    """The CPU, since one recording is too little work for an accelerator; None if there is no CPU backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
