"""Embeddings of recordings from an inner layer of a pretrained tagger, which guide a CRNN (EEFD)."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from qkd_jax.audio.reading import read_audio
from qkd_jax.data.cache import Entries, cached
from qkd_jax.data.clip_list import list_bad
from qkd_jax.data.clips import Clip
from qkd_jax.distill.tagger import read_tagger
from qkd_jax.distill.waveform_model import MAX_SAMPLES, open_model
from qkd_jax.errors import InputError

_FORMAT = 1  # raise when the same settings give other embeddings


def tagger_embeddings(
    path: Path, clips: Sequence[Clip], cache: Path, channel: int | None = None
) -> tuple[Entries, float]:
    """The outputs of `layer`, on `clips`, of the tagger described in the TOML file at `path`.

    Returns a file in `cache` for each clip, float32 [rows, size] in NumPy's format, and the hop in seconds:
    row r belongs to the window centred at r · hop, from 0 to the clip's end.  Beyond its ends the clip is
    mirrored, or repeated if it is shorter than half a window.  `channel`, counted from 1, is the one to read;
    None means the mean of all.  Raises InputError if the file, the model, its
    layer or a recording can't be used.
    """
    config = read_tagger(path)
    if config.layer is None:
        raise InputError(f"{path}: layer: expected the name of an inner tensor, found none")
    model = path.parent / config.file
    samples, outputs = open_model(model, config.layer)
    if config.window_seconds is not None:
        wanted = round(config.window_seconds * config.sample_rate)
        if samples not in (None, wanted):
            raise InputError(f"window_seconds: {model} takes {samples} samples, got {wanted}")
        samples = wanted
    if samples is None:
        raise InputError(f"{path}: window_seconds: expected a length, since {model} takes any, found none")
    if not 1 <= samples <= MAX_SAMPLES:
        raise InputError(f"window_seconds: expected 1 to {MAX_SAMPLES} samples, got {samples}")
    hop = max(round(config.hop_seconds * config.sample_rate) if config.hop_seconds else samples // 2, 1)

    def run(window: np.ndarray) -> np.ndarray:
        return outputs(window)[-1].astype(np.float32).ravel()

    embed = _embedder(run, samples, hop, config.sample_rate, channel, model)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    entries, bad = cached(
        clips,
        lambda clip: embed(clip.path),
        cache,
        settings=f"embeddings {_FORMAT} {digest} {config.layer} {config.sample_rate} {samples} "
        f"{hop} {channel}",
        width=run(np.zeros(samples, np.float32)).size,
        title=path.stem,
    )
    if bad:
        raise InputError(*list_bad(bad, len(clips)))
    return entries, hop / config.sample_rate


def _embedder(
    run: Callable[[np.ndarray], np.ndarray],
    samples: int,
    hop: int,
    sample_rate: int,
    channel: int | None,
    model: Path,
) -> Callable[[Path], np.ndarray]:
    """The function from a recording to its embeddings, float32 [rows, size]; safe in any thread."""
    before, after = samples // 2, samples - samples // 2

    def embed(recording: Path) -> np.ndarray:
        waveform = read_audio(recording, sample_rate, channel=channel)
        padded = np.pad(waveform, (before, after), mode="reflect" if len(waveform) > after else "wrap")
        windows = np.lib.stride_tricks.sliding_window_view(padded, samples)[::hop]
        rows = np.stack([run(window) for window in windows])
        if not np.isfinite(rows).all():
            raise InputError(f"{model}: expected finite embeddings of {recording}, found NaN or infinity")
        return rows

    return embed
