"""How posteriors become events."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.fields import STRICT, Positive, Probability, Seconds


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EventConfig:
    """How a detector's posteriors, a probability of each event at each step, become events."""

    thresholds: dict[str, dict[str, Probability]] = Field(default_factory=dict)
    """The threshold of each event at each operating point (`eer`, or `1/h` for one false alarm per hour)."""
    use: str | None = None
    """The operating point in use; without one every threshold is 0.5."""
    end: Annotated[float, Field(gt=0, le=1)] = 0.5
    """An event ends where its probability falls below this share of its threshold."""
    median_seconds: Seconds = 0.0
    """Length of a median filter over the probabilities; 0 for none."""
    gap_seconds: Seconds = 0.0
    """Events of one class closer together than this are joined."""
    shortest_seconds: Seconds = 0.0
    """Events shorter than this, after joining, are dropped."""
    history_seconds: Positive | None = None
    """Longest history that a posterior depends on (half of it the shortest); unlimited by default."""

    def __post_init__(self) -> None:
        if self.use is not None and self.use not in self.thresholds:
            raise ValueError(f"use: expected an operating point ({self.points}), got {self.use!r}")

    @property
    def points(self) -> str:
        """The names of the operating points."""
        return ", ".join(self.thresholds) or "there are none"
