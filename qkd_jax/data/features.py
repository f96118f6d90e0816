"""Log-mel energies of recordings, each computed once and kept in a file of its own."""

import functools
import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qkd_jax.audio.io import audio_blocks
from qkd_jax.audio.logmel import log_mel
from qkd_jax.config import FeatureConfig, InputError, to_json
from qkd_jax.data.clips import Clip
from qkd_jax.files import whole_file
from qkd_jax.progress import track
from qkd_jax.stop import stop_if_asked

_FORMAT = 1  # to be raised when the same settings come to give other features


def cached_features(
    clips: Sequence[Clip], config: FeatureConfig, cache: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    """The file of each clip's features in `cache`, computed on all cores where there is none.

    Returns the files, float32 [frames, n_mels] in NumPy's format, and for recordings that
    can't be used what is wrong with them, both by clip name.  A file is found by the settings
    and the recording's path, size and time of change, and is there whole or not at all.
    """
    settings = f"{_FORMAT} {to_json(config)}"
    entries = {clip.name: cache / _entry(clip.path, settings) for clip in clips}
    lacking = [clip for clip in clips if not _is_whole(entries[clip.name], config)]
    if lacking:
        print(f"features: {len(lacking)} of {len(clips)} recordings to read", flush=True)
    bad = {}
    for clip, reason in _in_parallel(lacking, config, entries):
        stop_if_asked()
        if reason:
            bad[clip.name] = reason
            del entries[clip.name]
    return entries, bad


def recording_features(path: Path, config: FeatureConfig) -> np.ndarray:
    """Log-mel energies of one recording, float32 [frames, n_mels], read block by block.

    Raises InputError if it can't be read, or is shorter than one window.
    """
    rate, pieces, samples, count = config.sample_rate, [], np.zeros(0, np.float32), 0
    for block in audio_blocks(path, rate):
        count += len(block)
        samples = np.concatenate([samples, block])
        frames = config.frames(len(samples))
        # Whole seconds, so that recordings of many lengths share few compiled shapes.
        padded = np.pad(samples, (0, -len(samples) % rate))
        with jax.default_device(_host()):
            pieces.append(np.asarray(log_mel(jnp.asarray(padded), config))[:frames])
        samples = samples[frames * config.hop_length :]
    features = np.concatenate(pieces)
    if not len(features):
        raise InputError(f"{path}: expected at least {config.win_length} samples at {rate} Hz, found {count}")
    if not np.isfinite(features).all():
        raise InputError(f"{path}: expected samples of a full scale of 1, found values beyond all measure")
    return features


class CachedFeatures(Sequence[np.ndarray]):
    """Features in files, mapped when asked for, so that any number of clips takes no memory."""

    def __init__(self, entries: Sequence[Path]):
        self.entries = entries
        # Mapping costs more than reading a short clip; a process may have some 65,000 maps.
        self.map = functools.lru_cache(10_000)(functools.partial(np.load, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index):
        return self.map(self.entries[index])


def mean_and_std(features: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each band over all frames (global CMVN), float32 [mels]."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for item in features:
        exact = np.asarray(item, np.float64)
        count, total, squares = count + len(item), total + exact.sum(axis=0), squares + (exact**2).sum(axis=0)
    mean = total / count
    # A band that never changes says nothing; it must not become infinite.
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-10))
    return mean.astype(np.float32), std.astype(np.float32)


@functools.cache
def _host() -> jax.Device | None:
    """The CPU, as a frame at a time is nothing for an accelerator; None if JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _entry(recording: Path, settings: str) -> Path:
    try:
        status = recording.stat()
        identity = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        identity = "not there"  # reading it will say so
    key = "\n".join([settings, str(recording.absolute()), identity])
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:32]
    return Path(digest[:2], f"{digest[2:]}.npy")


def _is_whole(entry: Path, config: FeatureConfig) -> bool:
    """False for what is missing, and for what a crash of the whole machine may leave."""
    try:
        features = np.load(entry, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return features.dtype == np.float32 and features.shape[1:] == (config.n_mels,) and len(features) > 0


def _in_parallel(
    clips: Sequence[Clip], config: FeatureConfig, entries: Mapping[str, Path]
) -> Iterator[tuple[Clip, str]]:
    """Compute the entries of `clips`; yields each with what is wrong with it, or the empty string."""

    def one(clip: Clip) -> str:
        try:
            if not clip.path.is_file():
                raise InputError(f"{clip.path}: not there")
            features = recording_features(clip.path, config)
        except (InputError, OSError) as error:
            return str(error)
        # Into a file itself, NumPy would not notice that the disk is full.
        buffer = io.BytesIO()
        np.save(buffer, features)
        with whole_file(entries[clip.name]) as file:
            file.write(buffer.getbuffer())
        return ""

    # Not all at once, so that two million clips do not wait in memory.
    some = [clips[start : start + 256] for start in range(0, len(clips), 256)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            done = itertools.chain.from_iterable(zip(batch, pool.map(one, batch)) for batch in some)
            yield from track(done, len(clips), "features")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
