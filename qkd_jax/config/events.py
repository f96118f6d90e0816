"""Post-processing of posteriors into events."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.config.fields import STRICT, Length, Probability, Seconds


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EventConfig:
    """Post-processing of a detector's posteriors (per event and step) into events."""

    thresholds: dict[str, dict[str, Probability]] = Field(default_factory=dict)
    """The threshold of each event at each operating point (`eer`, or `1/h` for one false alarm per hour)."""
    use: str | None = None
    """The operating point in use; if none, all thresholds are 0.5."""
    end: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Offset threshold, as a fraction of the onset threshold (hysteresis)."""
    median_seconds: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.0
    """Median filter length in seconds; 0 disables it."""
    gap_seconds: Seconds = 0.0
    """Maximum gap between merged events, in seconds."""
    shortest_seconds: Seconds = 0.0
    """Minimum event length after merging, in seconds."""
    history_seconds: Length | None = None
    """Maximum LSTM history in seconds (minimum: half of it); unlimited by default."""

    def __post_init__(self) -> None:
        if self.use is not None and self.use not in self.thresholds:
            raise ValueError(f"use: expected {self.points}, got {self.use!r}")

    @property
    def points(self) -> str:
        """The names of the operating points, for messages."""
        points = ", ".join(self.thresholds)
        return f"an operating point ({points})" if points else "none (the detector has no operating points)"
