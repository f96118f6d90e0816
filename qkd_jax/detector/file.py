"""A detector in one .safetensors file.

The tensors are `mean`, `std` and, prefixed by the name of the part (front.0 …, lstm.0 …, output, attention),
the arrays that `detector/codes.py` describes.  Weights are flat and packed at their bits (`quant/pack.py`),
each code plus 2^(bits - 1).  Everything else is in the JSON document (`container.sealed`).
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticSerializationError

from qkd_jax.config import EventConfig, FeatureConfig, LSTMConfig, from_json, to_json
from qkd_jax.config.fields import STRICT, Length
from qkd_jax.detector.codes import ConvCodes, LinearCodes, LSTMCodes
from qkd_jax.detector.container import MAX_FILE, ZEROS, Checksum, Layout, expect, opened, read, sealed
from qkd_jax.detector.detector import Detector
from qkd_jax.errors import InputError, explain
from qkd_jax.quant.pack import pack, unpack
from qkd_jax.system.files import whole_file

FORMAT = "qkd_jax detector, version 2"
_VERSION_1 = "qkd_jax detector, version 1"


class _Product(NamedTuple):
    """A product of codes x, |x| at most `x_max`, with `w`, rescaled by `multiplier`."""

    w: np.ndarray
    multiplier: np.ndarray
    x_max: int


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Settings:
    """A detector without its arrays: its fields of the same names, and the `cell_exponent` of each layer."""

    features: FeatureConfig
    network: LSTMConfig
    events: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    clip_seconds: Length
    input_exponent: Annotated[int, Field(ge=-16, le=16)]
    cell_exponents: tuple[Annotated[int, Field(ge=6, le=13)], ...]
    event_config: EventConfig

    def __post_init__(self) -> None:
        features, network, event_config = self.features, self.network, self.event_config
        for name, value, most in (
            ("network.convolutions", max(network.convolutions, default=0), 1 << 12),
            ("network.hidden_size", network.hidden_size, 1 << 12),
        ):
            if value > most:
                raise ValueError(f"{name}: expected at most {most}, got {value}")
        if network.quant.scheme != "integer":
            raise ValueError(f"network.quant.scheme: expected integer, got {network.quant.scheme}")
        if len(self.cell_exponents) != network.layers:
            raise ValueError(
                f"cell_exponents: expected {network.layers}, one per layer, got {len(self.cell_exponents)}"
            )
        if len(set(self.events)) < len(self.events):
            raise ValueError(f"events: expected each once, got {', '.join(self.events)}")
        for point, thresholds in event_config.thresholds.items():
            if thresholds.keys() != set(self.events):
                raise ValueError(
                    f"event_config.thresholds.{point}: expected one for each of {', '.join(self.events)}, "
                    f"got {', '.join(thresholds) or 'none'}"
                )
        if network.steps(features.frames(round(self.clip_seconds * features.sample_rate))) < 1:
            raise ValueError(f"clip_seconds: expected enough for one step, got {self.clip_seconds:g}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Document:
    """The JSON in the file's metadata; `sha256` is first, since `sealed` replaces the first 64 zeros."""

    sha256: Checksum = ZEROS
    detector: _Settings
    provenance: dict[str, str]


def save(detector: Detector, path: Path, provenance: Mapping[str, str] = {}) -> None:
    """Write `detector` to `path`, whole or not at all; equal detectors give equal bytes.

    `provenance` says where it comes from: a run, versions of libraries, data.  Raises InputError if `check`
    does, if the file would be too large to load, or if `path` can't be written.
    """
    check(detector)
    try:
        document = to_json(_Document(detector=_settings(detector), provenance=dict(provenance)))
    except ValidationError as error:
        raise InputError(explain(error)) from None
    except PydanticSerializationError as error:  # for example of file names that are not text
        raise InputError(str(error)) from None
    tensors = {
        name: _packed(array, _bits(name, detector.network)) for name, array in _arrays(detector).items()
    }
    data = sealed(FORMAT, document, tensors)
    _parse(data)  # refuse to write what could not be loaded, for its length
    with whole_file(path) as file:
        file.write(data)


def load(path: str | Path) -> Detector:
    """The detector in the file at `path`, which need not be trusted.

    Files of format version 1 load too.  Raises InputError, of one line, for anything that `save` didn't write
    or `check` refuses.
    """
    return _read(Path(path))[0]


def load_provenance(path: str | Path) -> dict[str, str]:
    """The `provenance` that `save` wrote to `path`; raises InputError as `load`."""
    return _read(Path(path))[1]


def check(detector: Detector) -> None:
    """Raise InputError, naming the part, unless every runtime computes the same codes for `detector`.

    Arrays must have the types and shapes that the settings require, and finite values; weights must be
    symmetric codes of their bits.  For no input may an accumulator reach 2^24, beyond which float32 is not
    exact, or a rescaled sum with its bias 2^29, which doubled for tanh must still fit int32.
    """
    settings, arrays = _settings(detector), _arrays(detector)
    expect({name: (str(array.dtype), array.shape) for name, array in arrays.items()}, _layout(settings))
    for name, array in arrays.items():
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise InputError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)][0]}")
        if array.dtype == np.int8:
            largest = 2 ** (_bits(name, settings.network) - 1) - 1
            if max(-int(array.min()), int(array.max())) > largest:
                raise InputError(
                    f"{name}: expected codes from {-largest} to {largest}, got {array.min()} to {array.max()}"
                )
    # Runtimes may flush smaller numbers to 0.
    if detector.std.min() < np.finfo(np.float32).tiny:
        raise InputError(f"std: expected positive normal numbers, got {detector.std.min()}")
    for part, products, bias in _outputs(detector):
        highest = np.abs(bias.astype(np.float64))
        for w, multiplier, x_max in products:
            sums = np.abs(w).reshape(-1, w.shape[-1]).sum(axis=0, dtype=np.int64) * x_max
            if sums.max() >= 1 << 24:
                raise InputError(f"{part}: expected accumulators below 2^24, but they may reach {sums.max()}")
            highest += sums * np.abs(multiplier.astype(np.float64))
        if highest.max() >= 1 << 29:
            raise InputError(f"{part}: expected values below 2^29, but they may reach {highest.max():.0f}")


def _outputs(detector: Detector) -> Iterator[tuple[str, list[_Product], np.ndarray]]:
    """The name, the products and the bias of each part."""
    bits = detector.network.quant.activations
    signed, unsigned = 1 << (bits - 1), (1 << bits) - 1
    x_max = signed
    for index, conv in enumerate(detector.front):
        yield f"front.{index}", [_Product(conv.w, conv.multiplier, x_max)], conv.bias
        x_max = unsigned
    for index, layer in enumerate(detector.lstm):
        from_h = _Product(layer.w_h, layer.multiplier_h, signed)
        yield f"lstm.{index}", [from_h, _Product(layer.w_x, layer.multiplier_x, x_max)], layer.bias
        x_max = signed
    for name, linear in (("output", detector.output), ("attention", detector.attention)):
        if linear is not None:
            yield name, [_Product(linear.w, linear.multiplier, signed)], linear.bias


def _plain(of: Detector | _Settings) -> dict[str, Any]:
    """The fields that a detector has in common with its settings."""
    return {
        field.name: getattr(of, field.name)
        for field in dataclasses.fields(_Settings)
        if field.name != "cell_exponents"
    }


def _settings(detector: Detector) -> _Settings:
    try:
        exponents = tuple(layer.cell_exponent for layer in detector.lstm)
        return _Settings(**_plain(detector), cell_exponents=exponents)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def _arrays(detector: Detector) -> dict[str, np.ndarray]:
    parts: dict[str, Any] = {f"front.{index}": conv for index, conv in enumerate(detector.front)}
    parts |= {f"lstm.{index}": layer for index, layer in enumerate(detector.lstm)}
    parts |= {"output": detector.output, "attention": detector.attention}
    return {"mean": detector.mean, "std": detector.std} | {
        f"{part}.{name}": array
        for part, codes in parts.items()
        if codes is not None
        for name, array in codes._asdict().items()
        if name != "cell_exponent"
    }


def _layout(settings: _Settings) -> Layout:
    """The arrays of a detector with these settings."""
    network, mels = settings.network, settings.features.n_mels
    layout: Layout = {"mean": ("float32", (mels,)), "std": ("float32", (mels,))}

    def product(part: str, shape: tuple[int, ...], of: str = "") -> None:
        layout[f"{part}.w{of}"] = "int8", shape
        layout[f"{part}.multiplier{of}"] = "float32", shape[-1:]
        layout[f"{part}.bias"] = "int32", shape[-1:]

    bands, channels = mels, 1
    for index, outputs in enumerate(network.convolutions):
        product(f"front.{index}", (3, 3, channels, outputs))
        bands, channels = -(-bands // 2), outputs
    inputs = bands * channels
    for index in range(network.layers):
        product(f"lstm.{index}", (network.hidden_size, 4 * network.hidden_size), "_h")
        product(f"lstm.{index}", (inputs, 4 * network.hidden_size), "_x")
        inputs = network.hidden_size
    for part in ("output", "attention") if network.pooling == "attention" else ("output",):
        product(part, (network.hidden_size, len(settings.events)))
    return layout


def _bits(name: str, network: LSTMConfig) -> int:
    return network.quant.output if name.startswith(("output", "attention")) else network.quant.weights


def _packed(array: np.ndarray, bits: int) -> np.ndarray:
    if array.dtype != np.int8:
        return np.ascontiguousarray(array)  # safetensors writes memory in its order, not the array's
    return pack(array.astype(np.int16) + (1 << (bits - 1)), bits)


def _stored_layout(document: _Document) -> Layout:
    settings = document.detector
    return {name: _stored(*kind, _bits(name, settings.network)) for name, kind in _layout(settings).items()}


def _stored(dtype: str, shape: tuple[int, ...], bits: int) -> tuple[str, tuple[int, ...]]:
    return (dtype, shape) if dtype != "int8" else ("uint8", (-(-math.prod(shape) * bits // 8),))


def _unpacked(data: np.ndarray, dtype: str, shape: tuple[int, ...], bits: int) -> np.ndarray:
    if dtype != "int8":
        return data
    codes = unpack(data, bits, math.prod(shape)) - np.uint8(1 << (bits - 1))  # modulo 256
    return codes.view(np.int8).reshape(shape)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Version1:
    """The document of version 1; `detector.student` also has settings of its training."""

    sha256: str
    detector: dict[str, Any]
    provenance: dict[str, str]


_NAMES = {"input": "input_exponent", "cell": "cell_exponents", "detection": "event_config"}
_NETWORK_NAMES = {"halvings": "time_strides", "units": "hidden_size"}
_TRAINING = {"distill", "learning_rate", "ema_decay", "start"}


def _from_version_1(text: str) -> str:
    """The document `text` of version 1 as one of today: without settings of training, under today's names."""
    document = from_json(_Version1, text, "metadata")
    detector = {_NAMES.get(name, name): value for name, value in document.detector.items()}
    student = detector.pop("student", None)
    if isinstance(student, dict):
        network = {_NETWORK_NAMES.get(name, name): value for name, value in student.items()}
        detector["network"] = {name: value for name, value in network.items() if name not in _TRAINING}
    return json.dumps(dataclasses.asdict(document) | {"detector": detector})


def _read(path: Path) -> tuple[Detector, dict[str, str]]:
    return read(path, _parse, "a detector", MAX_FILE)


def _parse(data: bytes) -> tuple[Detector, dict[str, str]]:
    """The detector and its provenance; no array is created before all stored ones match the settings."""
    older = {_VERSION_1: _from_version_1}
    document, stored = opened(data, FORMAT, _Document, _stored_layout, "a detector", MAX_FILE, older)
    settings, network = document.detector, document.detector.network
    # At most 200 MB: a file of MAX_FILE bytes with 2-bit codes.
    arrays = {
        name: _unpacked(stored[name], *kind, _bits(name, network)) for name, kind in _layout(settings).items()
    }

    def part(kind: Any, name: str, **more: int) -> Any:
        own = {field: arrays[f"{name}.{field}"] for field in kind._fields if field not in more}
        return kind(**own, **more)

    detector = Detector(
        **_plain(settings),
        mean=arrays["mean"],
        std=arrays["std"],
        front=tuple(part(ConvCodes, f"front.{index}") for index in range(len(network.convolutions))),
        lstm=tuple(
            part(LSTMCodes, f"lstm.{index}", cell_exponent=exponent)
            for index, exponent in enumerate(settings.cell_exponents)
        ),
        output=part(LinearCodes, "output"),
        attention=part(LinearCodes, "attention") if network.pooling == "attention" else None,
    )
    check(detector)
    return detector, document.provenance
