"""Reading recordings: any file libsndfile reads, any rate, any number of channels."""

from pathlib import Path

import numpy as np

from qkd_jax.config import InputError


def read_audio(path: str | Path, sample_rate: int = 16_000) -> np.ndarray:
    """The recording at `path` as float32 [samples], mono (mean of the channels), at `sample_rate` Hz.

    Resampled by soxr's high-quality filter through librosa.  Raises InputError if the file
    can't be read or holds no samples.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:
        raise InputError(f"{path}: expected a recording that libsndfile reads: {error}") from None
    mono = samples.mean(axis=1)
    if rate != sample_rate and mono.size:
        import librosa

        mono = librosa.resample(mono, orig_sr=rate, target_sr=sample_rate, res_type="soxr_hq")
    if not mono.size:
        raise InputError(f"{path}: expected samples, found none")
    return mono
