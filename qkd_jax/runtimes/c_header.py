"""A detector as one C99 header, for microcontrollers."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qkd_jax.audio.mel import mel_basis, window
from qkd_jax.config import FeatureConfig, to_json
from qkd_jax.config.fields import STRICT, Length
from qkd_jax.detector.codes import GATE_EXPONENT, LOGIT_EXPONENT, TABLE_LIMIT, sigmoid_table
from qkd_jax.detector.detector import Detector
from qkd_jax.detector.events import event_rule
from qkd_jax.detector.file import check
from qkd_jax.errors import InputError

_NAME = "^[a-z][a-z0-9_]*$"
_CHECKSUM = "// sha256 of the rest: "


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Description:
    """A header's description in its second line; every name in the header begins with `name`."""

    format: Literal["qkd_jax C header, version 1"] = "qkd_jax C header, version 1"
    name: Annotated[str, Field(pattern=_NAME)]
    events: tuple[str, ...]
    features: FeatureConfig
    clip_seconds: Length
    pooling: Literal["last", "mean", "attention"]
    layers: Annotated[int, Field(ge=1, le=64)]


def to_c(detector: Detector, *, name: str = "qkd") -> str:
    """`detector` as the text of a C99 header, whose comments show its use; every name begins with `name`.

    It needs only the C standard library, allocates nothing, and from the input codes on computes the
    integers of `detector/reference.py`.  Weights of up to 4 bits take 4 bits, others 8.  Raises InputError
    if `detector.file.check` does, for a `name` that C doesn't allow, and for an n_fft that isn't a power of
    two.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    check(detector)
    features, network = detector.features, detector.network
    if not re.fullmatch(_NAME, name):
        raise InputError(f"name: expected lower-case letters, digits and _, a letter first, got {name!r}")
    if features.n_fft not in [2**power for power in range(2, 16)]:
        raise InputError(f"n_fft: expected a power of two from 4 to 32768, got {features.n_fft}")
    front, lstm, linear = _front(detector), _lstm(detector), _linear(detector)
    layers = [*front, *lstm, *linear]
    arrays = {key: array for layer in layers for key, array in layer.arrays().items()} | _tables(detector)
    fields = _fields(detector, front)
    ram = sum(field.bytes * (field.length or 1) for field in fields)
    description = Description(
        name=name,
        events=detector.events,
        features=features,
        clip_seconds=detector.clip_seconds,
        pooling=network.pooling,
        layers=network.layers,
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("detector.h.jinja").render(
        n=name,
        N=name.upper(),
        description=json.dumps(json.loads(to_json(description))),  # one line of ASCII
        features=features,
        network=network,
        events=[_string(event) for event in detector.events],
        front=front,
        lstm=lstm,
        linear=linear,
        kernels=sorted({(p.kernel, p.bits, p.signed) for layer in layers for p in layer.products}),
        arrays=[(_kind(array), key, array.size, _numbers(array)) for key, array in arrays.items()],
        fields=fields,
        flash=sum(array.nbytes for array in arrays.values()),
        ram=ram + -ram % fields[0].bytes,
        floor=_float(features.floor),
        input_scale=_float(2.0**detector.input_exponent),
    )
    return checksum_line(text.encode()) + text


class _Product(NamedTuple):
    """The weights of a product: `codes` [rows, inputs] of 4 or 8 `bits`, for `signed` or unsigned inputs.

    At 4 bits a row holds the weights of two outputs, one in the low bits and one in the high bits.
    """

    name: str
    inputs: int
    codes: np.ndarray
    multiplier: np.ndarray
    bits: int
    signed: bool

    @property
    def kernel(self) -> str:
        return f"dot_{'signed' if self.signed else 'unsigned'}_{self.bits}"


class _Layer(NamedTuple):
    """A layer, the sum of its `products` and `bias` [outputs]; `shape` holds the template's other numbers."""

    name: str
    products: list[_Product]
    bias: np.ndarray
    shape: dict[str, int]

    def arrays(self) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for product in self.products:
            arrays |= {product.name: product.codes, f"{product.name}_multiplier": product.multiplier}
        return arrays | {f"{self.name}_bias": self.bias}


class _Field(NamedTuple):
    """A member of the state struct; `length` is 0 for a scalar."""

    kind: str
    name: str
    length: int
    comment: str = ""

    @property
    def bytes(self) -> int:
        return 4 if self.kind == "float" else int(re.sub(r"\D", "", self.kind)) // 8


def _product(name: str, w: np.ndarray, multiplier: np.ndarray, bits: int, *, signed: bool) -> _Product:
    """The product with `w` [inputs, outputs], codes of `bits` bits."""
    rows, inputs, stored = w.T.astype(np.int32), len(w), 4 if bits <= 4 else 8
    if inputs > 1 << 16:
        raise InputError(f"{name}: expected at most 65536 inputs, whose sums fit in 32 bits, got {inputs}")
    if stored == 4:
        pairs = np.pad(rows + 8, ((0, len(rows) % 2), (0, 0)))
        codes = (pairs[::2] + 16 * pairs[1::2]).astype(np.uint8)
    else:
        codes = (rows + 128).astype(np.uint8) if signed else rows.astype(np.int8)
    return _Product(name, inputs, codes, multiplier, stored, signed)


def _front(detector: Detector) -> list[_Layer]:
    """The convolutions; a row runs over bands, then frames, then channels."""
    network, bands, layers = detector.network, detector.features.n_mels, []
    for index, conv in enumerate(detector.front):
        name, (channels, outputs) = f"conv_{index + 1}", conv.w.shape[2:]
        w = conv.w.swapaxes(0, 1).reshape(9 * channels, outputs)
        product = _product(name, w, conv.multiplier, network.quant.weights, signed=index == 0)
        shape = {"channels": channels, "bands": bands, "stride": network.conv_stride(index)}
        layers.append(_Layer(name, [product], conv.bias, shape))
        bands = -(-bands // 2)
    return layers


def _lstm(detector: Detector) -> list[_Layer]:
    """The LSTM's layers; rows are ordered by hidden unit, then by gate."""

    def by_unit(columns: np.ndarray) -> np.ndarray:
        gates = columns.reshape(*columns.shape[:-1], 4, -1)
        return gates.swapaxes(-1, -2).reshape(columns.shape)

    bits, layers = detector.network.quant.weights, []
    for index, layer in enumerate(detector.lstm):
        name, signed = f"lstm_{index + 1}", index > 0 or not detector.front
        h = _product(f"{name}_h", by_unit(layer.w_h), by_unit(layer.multiplier_h), bits, signed=True)
        x = _product(f"{name}_x", by_unit(layer.w_x), by_unit(layer.multiplier_x), bits, signed=signed)
        layers.append(_Layer(name, [h, x], by_unit(layer.bias), {"cell_exponent": layer.cell_exponent}))
    return layers


def _linear(detector: Detector) -> list[_Layer]:
    """The output layer, and the attention's if there is one."""
    layers = []
    for name, linear in (("output", detector.output), ("attention", detector.attention)):
        if linear is not None:
            bits = detector.network.quant.output
            product = _product(name, linear.w, linear.multiplier, bits, signed=True)
            layers.append(_Layer(name, [product], linear.bias, {}))
    return layers


def _tables(detector: Detector) -> dict[str, np.ndarray]:
    """The tables of the gates and the log-mel energies; half of those that are symmetric."""
    features, filters = detector.features, mel_basis(detector.features).T
    turns = np.arange(features.n_fft // 2 + 1) / features.n_fft
    return {
        "odd_table": (sigmoid_table()[TABLE_LIMIT:] - (1 << (GATE_EXPONENT - 1))).astype(np.int16),
        "hann": window(features)[: features.win_length // 2 + 1],
        "cosine": np.cos(2 * np.pi * turns).astype(np.float32),
        "mel_filters": filters[filters > 0],
        "mel_first": (filters > 0).argmax(axis=1).astype(np.uint16),
        "mel_end": (filters > 0).sum(axis=1).cumsum().astype(np.uint16),
        "mean": detector.mean,
        "std": detector.std,
        "threshold": np.ceil(event_rule(detector).begin * 2.0**LOGIT_EXPONENT).astype(np.int32),
    }


def _fields(detector: Detector, front: list[_Layer]) -> list[_Field]:
    """The members of the state struct, the widest first, so that the compiler inserts no padding."""
    features, network, events = detector.features, detector.network, len(detector.events)
    pooled = {
        "last": [],
        "mean": [_Field("int64_t", "sum", events, "of the outputs")],
        "attention": [
            _Field("int32_t", "attention", events, "of the last step, of the same scale"),
            _Field("int32_t", "peak", events, "the largest attention"),
            _Field("float", "weight", events, "the sum of exp(attention - peak)"),
            _Field("float", "weighted", events, "the sum of exp(attention - peak) * output"),
        ],
    }
    fields = [
        _Field("int32_t", "output", events, "logits of the last step, of scale 2^-9"),
        _Field("uint32_t", "steps", 0, "since the reset"),
        *pooled[network.pooling],
        _Field("float", "log_mel", features.n_mels, "of the last frame"),
        _Field("float", "spectrum", features.n_fft + 2),
        _Field("int32_t", "filled", 0, "samples in pcm; if negative, samples to skip"),
        _Field("int16_t", "pcm", features.win_length),
        _Field("int8_t", "codes", features.n_mels),
        _Field("int8_t", "next_h", network.hidden_size),
    ]
    for layer in front:
        kind = "int8_t" if layer.products[0].signed else "uint8_t"
        bands = layer.shape["bands"] + 1 + layer.shape["bands"] % 2
        fields += [
            _Field("int32_t", f"{layer.name}_frames", 0),
            _Field(kind, layer.name, 3 * bands * layer.shape["channels"]),
        ]
    if front:
        widest = max(-(-layer.shape["bands"] // 2) * len(layer.bias) for layer in front)
        fields.append(_Field("uint8_t", "front", widest, "outputs of a convolution"))
    for index in range(network.layers):
        fields.append(_Field("int16_t", f"lstm_{index + 1}_c", network.hidden_size))
        fields.append(_Field("int8_t", f"lstm_{index + 1}_h", network.hidden_size))
    return sorted(fields, key=lambda field: -field.bytes)


def _kind(array: np.ndarray) -> str:
    return "float" if array.dtype == np.float32 else f"{array.dtype}_t"


def _numbers(array: np.ndarray) -> str:
    """The elements of `array` in C, 16 per line."""
    numbers = [_float(x) if isinstance(x, float) else str(x) for x in array.ravel().tolist()]
    return ",\n".join(", ".join(numbers[start : start + 16]) for start in range(0, len(numbers), 16))


def _float(x: float) -> str:
    return f"{x:.8e}f"  # 9 digits distinguish any two float32


def _string(text: str) -> str:
    """`text` as a C string in UTF-8, with octal escapes, which end after three digits, and no trigraphs."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"?\\' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{"".join(plain)}"'


def checksum_line(rest: bytes) -> str:
    """The first line of a header, before `rest`."""
    return f"{_CHECKSUM}{hashlib.sha256(rest).hexdigest()}\n"
