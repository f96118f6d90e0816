"""Augmentation of features while models train, and of recordings before."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.fields import STRICT, Count, Decibels, Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """Augmentation of training features; off by default, as in the paper.

    Shifts, gains and masks leave labels and the teachers' posteriors as they are; mixing mixes them.
    """

    time_shift: Share = 0.0
    """Maximum circular time shift, as a fraction of clip length."""
    time_masks: Annotated[int, Field(ge=0, le=100)] = 0
    """Number of time masks (SpecAugment, Park et al. 2019)."""
    time_mask_frames: Count = 50
    """Maximum frames per time mask."""
    mel_masks: Annotated[int, Field(ge=0, le=100)] = 0
    """Number of mel masks."""
    mel_mask_bands: Count = 8
    """Maximum bands per mel mask."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Mix each clip with another by a share from Beta(mixup, mixup) (Zhang et al. 2018); 0 disables it."""
    mixup_share: Share = 1.0
    """Probability of mixup per batch."""
    gain: Decibels = 0.0
    """Largest change of a clip's level, up or down, in dB."""
    mixtures: Share = 0.0
    """Share of clips that another is added to, as two sounds at once: energies are added."""
    mixture_gain: Decibels = 6.0
    """Largest change of the other clip's level, up or down, in dB."""
    views: Annotated[int, Field(ge=0, le=1000)] = 0
    """Views of each training recording: new recordings made from it, which heads label."""
    least_views: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Least number of views in all: with few recordings, each has more of them."""

    def __post_init__(self) -> None:
        if 0 < self.mixup < (least := 0.001):  # Beta(0, 0) is NaN
            raise ValueError(f"mixup: expected 0, or {least} to 100, got {self.mixup:g}")

    def views_per_clip(self, clips: int) -> int:
        """Views of each of so many labelled training clips.

        >>> AugmentConfig(views=2, least_views=2000).views_per_clip(150)
        14
        """
        return max(self.views, -(-self.least_views // clips))

    @property
    def on(self) -> bool:
        """Whether any augmentation of features is on."""
        masks = self.time_masks or self.mel_masks
        return bool(self.time_shift or masks or self.mixup or self.gain or self.mixtures)
