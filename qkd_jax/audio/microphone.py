"""Recording from the default input device with PortAudio, from the extra `microphone`."""

import sys
from collections.abc import Iterator

import numpy as np

from qkd_jax.errors import InputError

_BLOCKS_PER_SECOND = 10


def microphone_blocks(sample_rate: int) -> Iterator[np.ndarray]:
    """Record from the default input device without end: blocks of float32 [samples] at `sample_rate` Hz.

    Prints a line on standard error when samples were read too late and lost; later times are then too early.
    Raises InputError without sounddevice, PortAudio or such a device.
    """
    try:
        import sounddevice
    except ImportError:
        raise InputError("mic: expected sounddevice: pip install sounddevice") from None
    except OSError as error:
        raise InputError(f"mic: expected the PortAudio library (Debian: libportaudio2): {error}") from None
    try:
        with sounddevice.InputStream(sample_rate, channels=1, dtype="float32") as device:
            while True:
                samples, lost = device.read(sample_rate // _BLOCKS_PER_SECOND)
                if lost:
                    print("mic: samples were lost: from here on, times are too early", file=sys.stderr)
                yield samples[:, 0]
    except sounddevice.PortAudioError as error:
        raise InputError(
            f"mic: expected a device that records {sample_rate} samples per second: {error}"
        ) from None
