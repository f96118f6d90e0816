"""From recordings to features on disk, as train.py makes them the first time."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.speed.log_mel import CLOSE, FEATURES, in_librosa, noise
from benchmarks.speed.turns import Row, agree, in_turns
from qkd_jax.data.clips import Clip
from qkd_jax.data.features import cached_features
from qkd_jax.errors import InputError

QUESTION = "From WAV files to features on disk"
ABOUT = """3,000 clips of 10 s, 16 bits at 16 kHz, a file each, which the system has read before; for each a
file of features, float32 [998, 64], into a folder that is empty at first, on all cores. Ours is what
train.py does when its cache is cold. The peer is a loop of `librosa.load`, `melspectrogram`, logarithm and
`np.save` in a pool of processes, one a core, which have imported librosa before the clock starts. The
features of 20 clips are compared."""
PACKAGES = ("librosa", "soundfile")
CLIPS, CLIP_SECONDS, COMPARED = 3000, 10, 20
GOAL = 3.0


def recordings(folder: Path, count: int) -> list[Clip]:
    """Noise of CLIP_SECONDS in `count` WAV files of 16 bits."""
    clips = []
    for index in range(count):
        path = folder / f"{index}.wav"
        soundfile.write(path, noise(CLIP_SECONDS, seed=index), FEATURES.sample_rate, subtype="PCM_16")
        clips.append(Clip(name=path.name, root=path.parent, labels=frozenset(), group=path.name))
    return clips


def ours(clips: Sequence[Clip], cache: Path) -> list[Path]:
    """The files of their features, which are all made if `cache` is empty."""
    entries, bad = cached_features(clips, FEATURES, cache)
    if bad:
        raise InputError(f"expected recordings, found {bad}")
    return list(entries)


def librosa_file(folder: Path, recording: Path) -> Path:
    """The file in `folder` of the features of one recording."""
    import librosa

    waveform, _ = librosa.load(recording, sr=FEATURES.sample_rate)
    path = folder / f"{recording.stem}.npy"
    np.save(path, in_librosa(FEATURES)(waveform))
    return path


def librosa_loop(pool: Executor, clips: Sequence[Clip], folder: Path) -> list[Path]:
    """The files of the features of `clips`."""
    return list(pool.map(partial(librosa_file, folder), [clip.path for clip in clips], chunksize=8))


def rows(rounds: int, count: int = CLIPS, workers: int | None = None) -> Iterator[Row]:
    """Ours beside the loop in `workers` processes, by default one a core."""
    # For the workers: with a process on each core, threads for matrices only stand in each other's way.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # A fork of a process in which JAX runs may hang.
    pool = ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn"))
    loop = partial(librosa_loop, pool)
    with pool, tempfile.TemporaryDirectory() as folder:
        clips, (one, other) = (
            recordings(Path(folder), count),
            (Path(folder, name) for name in ("one", "other")),
        )
        other.mkdir()
        pairs = zip(ours(clips[:COMPARED], one), loop(clips[:COMPARED], other))
        off = max(agree("librosa", np.load(mine), np.load(theirs), CLOSE) for mine, theirs in pairs)

        def anew(way: Callable[[Sequence[Clip], Path], list[Path]]) -> None:
            with tempfile.TemporaryDirectory() as empty:
                way(clips, Path(empty))

        took = in_turns({"ours": partial(anew, ours), "librosa": partial(anew, loop)}, rounds)
    yield Row(
        what=f"{count} clips of {CLIP_SECONDS} s",
        ours="cached_features",
        peer="librosa in a pool of processes",
        seconds=took["ours"],
        peer_seconds=took["librosa"],
        off=off,
        at_least=GOAL,
        note=f"{count / np.median(took['ours']):,.0f} clips a second",
    )
