"""Features: log-mel energies of an hour on one core, and from recordings to features on disk on all cores."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from benchmarks.speed.measure import Row, agree, beside, in_turns
from qkd_jax.audio import log_mel_numpy
from qkd_jax.audio.log_mel import log_mel
from qkd_jax.config import FeatureConfig
from qkd_jax.data.clips import Clip
from qkd_jax.data.features import cached_features, recording_features
from qkd_jax.errors import InputError

FEATURES = FeatureConfig()
SECONDS, BLOCK = 3600, 30
CLIPS, CLIP_SECONDS, COMPARED = 3000, 10, 20
CLOSE = 1e-5
"""Orders of summation in float32; an edge wrong by 1 Hz, or a floor by a thousandth, is off by more."""
GOALS = {"librosa": 10.0, "kaldi-native-fbank": 1.0}
OURS, LOOP, FILES_GOAL = "cached_features", "librosa in a pool of processes", 2.0
POOL = "our features in a pool of processes"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Way = Callable[[np.ndarray], np.ndarray]
"""A function of a waveform float32 [samples], full scale 1, to log-mel energies float32 [frames, mels]."""


def noise(seconds: int, seed: int = 0) -> np.ndarray:
    """Noise whose level changes every second, from 80 to 10 dB below full scale, float32 [samples]."""
    rng = np.random.default_rng(seed)
    level = 10 ** rng.uniform(-4, -0.5, seconds).astype(np.float32)
    rate = FEATURES.sample_rate
    return rng.standard_normal(seconds * rate, np.float32) * level.repeat(rate)


def blocks(waveform: np.ndarray, seconds: int) -> list[np.ndarray]:
    """Pieces of `waveform` whose frames, one after the other, are those of the whole."""
    step, overlap = seconds * FEATURES.sample_rate, FEATURES.win_length - FEATURES.hop_length
    starts = range(0, len(waveform) - FEATURES.win_length + 1, step)
    return [waveform[start : start + step + overlap] for start in starts]


def in_jax(features: FeatureConfig) -> Way:
    """Ours in JAX, on the CPU, where recordings are read."""
    (cpu, *_) = jax.devices("cpu")

    def way(waveform: np.ndarray) -> np.ndarray:
        with jax.default_device(cpu):
            return np.asarray(log_mel(jnp.asarray(waveform), features))

    return way


def in_librosa(features: FeatureConfig) -> Way:
    """`librosa.feature.melspectrogram`, then the logarithm."""
    import librosa

    # librosa centres the window in the FFT; ours starts with it.
    spare = features.n_fft - features.win_length
    padding = (spare // 2, spare - spare // 2)
    names = ("n_fft", "hop_length", "win_length", "n_mels", "fmin", "fmax")
    settings = {name: getattr(features, name) for name in names}

    def way(waveform: np.ndarray) -> np.ndarray:
        padded = np.pad(waveform, padding)
        energies = librosa.feature.melspectrogram(y=padded, sr=features.sample_rate, center=False, **settings)
        return np.log(energies + np.float32(features.floor)).T

    return way


def in_kaldi(features: FeatureConfig) -> Way:
    """kaldi-native-fbank's energies, then the logarithm."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.use_log_fbank = False  # that has another floor
    frames, bands, rate = options.frame_opts, options.mel_opts, features.sample_rate
    frames.samp_freq, frames.window_type, frames.snip_edges = rate, "hann", True
    frames.frame_length_ms = 1e3 * features.win_length / rate
    frames.frame_shift_ms = 1e3 * features.hop_length / rate
    frames.dither, frames.preemph_coeff, frames.remove_dc_offset = 0.0, 0.0, False
    bands.num_bins, bands.low_freq, bands.high_freq = features.n_mels, features.fmin, features.fmax
    bands.is_librosa = True

    def way(waveform: np.ndarray) -> np.ndarray:
        bank = kaldi_native_fbank.OnlineFbank(options)
        bank.accept_waveform(rate, waveform)
        bank.input_finished()
        energies = np.stack([bank.get_frame(frame) for frame in range(bank.num_frames_ready)])
        return np.log(energies + np.float32(features.floor))

    return way


def hour_rows(rounds: int, seconds: int = SECONDS, block: int = BLOCK) -> Iterator[Row]:
    """Ours in JAX and in NumPy, each beside each peer; the goals are for JAX."""
    pieces = blocks(noise(seconds), block)
    mine: dict[str, Way] = {"log_mel, JAX": in_jax(FEATURES)}
    mine["log_mel, NumPy"] = partial(log_mel_numpy.log_mel, FEATURES)
    peers: dict[str, Way] = {"librosa": in_librosa(FEATURES)}
    if importlib.util.find_spec("kaldi_native_fbank"):
        peers["kaldi-native-fbank"] = in_kaldi(FEATURES)

    def whole(way: Way) -> list[np.ndarray]:
        return [way(piece) for piece in pieces]

    took = in_turns({name: partial(whole, way) for name, way in (mine | peers).items()}, rounds)
    for name, way in mine.items():
        results = {peer: zip(pieces, whole(other)) for peer, other in peers.items()}
        off = {
            (name, peer): max(agree(peer, way(piece), theirs, CLOSE) for piece, theirs in each)
            for peer, each in results.items()
        }
        goals = GOALS if "JAX" in name else {}
        yield from beside(
            f"{seconds} s", took, off, goals, lambda own: f"{seconds / np.median(own):,.0f} times real time"
        )


def recordings(folder: Path, count: int) -> list[Clip]:
    """Noise of CLIP_SECONDS in `count` WAV files of 16 bits."""
    clips = []
    for index in range(count):
        path = folder / f"{index}.wav"
        soundfile.write(path, noise(CLIP_SECONDS, seed=index), FEATURES.sample_rate, subtype="PCM_16")
        clips.append(Clip(name=path.name, root=path.parent, labels=frozenset(), group=path.name))
    return clips


def ours(clips: Sequence[Clip], cache: Path) -> list[Path]:
    """The files of their features, which are all computed if `cache` is empty."""
    entries, bad = cached_features(clips, FEATURES, cache)
    if bad:
        raise InputError(f"expected recordings, found {bad}")
    return list(entries)


def librosa_file(folder: Path, recording: Path) -> Path:
    """The file in `folder` with the features of one recording."""
    import librosa

    waveform, _ = librosa.load(recording, sr=FEATURES.sample_rate)
    path = folder / f"{recording.stem}.npy"
    np.save(path, in_librosa(FEATURES)(waveform))
    return path


def our_file(folder: Path, recording: Path) -> Path:
    """The file in `folder` with our features of one recording."""
    path = folder / f"{recording.stem}.npy"
    np.save(path, recording_features(recording, FEATURES))
    return path


def loop_in(
    pool: Executor, one: Callable[[Path, Path], Path], clips: Sequence[Clip], folder: Path
) -> list[Path]:
    """The files that `one` makes of `clips`, in the processes of `pool`."""
    return list(pool.map(partial(one, folder), [clip.path for clip in clips], chunksize=8))


def file_rows(rounds: int, count: int = CLIPS, workers: int | None = None) -> Iterator[Row]:
    """Ours beside two loops in `workers` processes, by default one per core: librosa's, and our own."""
    # For the workers: with a process on each core, threads for matrices only get in each other's way.
    os.environ |= dict.fromkeys(THREADS, "1")
    # A fork of a process in which JAX runs may hang.
    pool = ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn"))
    loops = {LOOP: partial(loop_in, pool, librosa_file), POOL: partial(loop_in, pool, our_file)}
    with pool, tempfile.TemporaryDirectory() as folder:
        clips, off = recordings(Path(folder), count), {}
        mine = ours(clips[:COMPARED], Path(folder, "ours"))
        for name, loop in loops.items():
            (other := Path(folder, name)).mkdir()
            pairs = zip(mine, loop(clips[:COMPARED], other))
            off[OURS, name] = max(agree(name, np.load(one), np.load(theirs), CLOSE) for one, theirs in pairs)

        def anew(way: Callable[[Sequence[Clip], Path], list[Path]]) -> None:
            with tempfile.TemporaryDirectory() as empty:
                way(clips, Path(empty))

        took = in_turns({name: partial(anew, way) for name, way in ({OURS: ours} | loops).items()}, rounds)
    what, goals = f"{count} clips of {CLIP_SECONDS} s", {LOOP: FILES_GOAL}
    yield from beside(what, took, off, goals, lambda own: f"{count / np.median(own):,.0f} clips/s")
