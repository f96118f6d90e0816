"""Types of settings, and the strictness that all settings share."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True)
"""No unknown fields, and no conversions: the text "3" is not the number 3."""

MIN_BITS, MAX_BITS, OFF = 2, 16, 32


def check_bits(bits: int) -> int:
    """Return `bits` if a quantizer supports it (2 to 16, or 32 for off); else raise ValueError.

    >>> check_bits(4)
    4
    """
    if not (MIN_BITS <= bits <= MAX_BITS or bits == OFF):
        raise ValueError(f"bits: expected {MIN_BITS} to {MAX_BITS}, or {OFF} for off, got {bits}")
    return bits


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"expected letters, digits, _ . -, starting with a letter or digit, got {name!r}")
    return name


Bits = Annotated[int, AfterValidator(check_bits)]
Count = Annotated[int, Field(ge=1)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Name = Annotated[str, AfterValidator(_check_name)]
Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
"""Far from the ends of float32, so that products and sums stay finite."""
Weight = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Decibels = Annotated[float, Field(ge=0, le=60)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[int, Field(ge=1, le=1 << 20)]
Length = Annotated[float, Field(gt=0, le=24 * 3600)]
Seconds = Annotated[float, Field(ge=0, le=24 * 3600, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
RuntimeName = Literal["numpy", "jax", "onnx", "litert", "c"]
FormatName = Literal["safetensors", "onnx", "litert", "c"]
SampleFormat = Literal["u8", "s16", "s24", "s32", "f32", "f64"]
"""Encodings of samples: unsigned or signed integers, or floats, and their bits."""
