"""Settings of log-mel energies."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.fields import STRICT, Count, Positive, Rate


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeatureConfig:
    """Log-mel energies, named as in librosa.  The default is the paper's: 998 x 64 for 10 s.

    >>> FeatureConfig().frames(160_000)
    998
    """

    sample_rate: Rate = 16_000
    """Samples per second; recordings at other rates are resampled."""
    win_length: Count = 400
    """Samples per window (25 ms)."""
    hop_length: Rate = 160
    """Hop length in samples (10 ms)."""
    n_fft: Annotated[int, Field(ge=1, le=1 << 15)] = 512
    """Points of the FFT; windows are zero-padded to this length."""
    n_mels: Annotated[int, Field(ge=1, le=1 << 10)] = 64
    """Mel bands."""
    fmin: Annotated[float, Field(ge=0)] = 50.0
    """Lower edge of the lowest band, in Hz."""
    fmax: Positive = 8000.0
    """Upper edge of the highest band, in Hz."""
    floor: Annotated[float, Field(ge=1e-30, le=1e30, allow_inf_nan=False)] = 1e-6
    """Added to the energy before the logarithm."""

    def __post_init__(self) -> None:
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length: expected at most n_fft = {self.n_fft}, got {self.win_length}")
        if not self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(
                f"fmin, fmax: expected fmin < fmax <= sample_rate / 2 = {self.sample_rate / 2:g} Hz, "
                f"got {self.fmin:g} and {self.fmax:g}"
            )
        if self.fmax - self.fmin < 1:  # filters would have no width in float32
            raise ValueError(f"fmin, fmax: expected at least 1 Hz apart, got {self.fmin:g} and {self.fmax:g}")

    def frames(self, samples: int) -> int:
        """Number of whole frames in `samples` samples; none is padded."""
        return max(0, 1 + (samples - self.win_length) // self.hop_length)
