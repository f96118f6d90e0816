"""Files of detectors, changed and given a correct checksum, so that later checks meet the fault."""

import json
import struct
from hashlib import sha256

import numpy as np

from benchmarks.reliability.mutate import bomb, mutate_bytes, mutate_tree


def split(data):
    """The header of a .safetensors file, parsed, and the bytes of its tensors."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, tensors):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def sealed(data):
    """`data` with a correct checksum, if it still has a field for one."""
    mark = b'\\"sha256\\": \\"'
    begin = data.find(mark) + len(mark)
    if mark not in data:
        return data
    before, after = data[:begin], data[begin + 64 :]
    return before + sha256(before + b"0" * 64 + after).hexdigest().encode() + after


def with_document(data, change):
    """`data` after `change` of its document, with a correct checksum."""
    header, tensors = split(data)
    ((form, text),) = header["__metadata__"].items()
    document = json.loads(text)
    change(document)
    return sealed(joined(header | {"__metadata__": {form: json.dumps(document, indent=2)}}, tensors))


def with_header(data, change):
    """`data` after `change` of its header, with a correct checksum."""
    header, tensors = split(data)
    change(header)
    return sealed(joined(header, tensors))


def with_array(data, name, numbers):
    """`data` with `numbers` at the start of the tensor `name`, and a correct checksum."""
    header, tensors = split(data)
    begin, _ = header[name]["data_offsets"]
    numbers = np.asarray(numbers).tobytes()
    return sealed(joined(header, tensors[:begin] + numbers + tensors[begin + len(numbers) :]))


def as_version_1(data):
    """A detector's file in format version 1, whose `student` also holds settings of its training."""
    header, tensors = split(data)
    (text,) = header["__metadata__"].values()
    document = json.loads(text)
    detector = document["detector"]
    student = detector.pop("network")
    del student["architecture"]
    student |= {"halvings": student.pop("time_strides"), "units": student.pop("hidden_size")}
    student |= {"distill": True, "learning_rate": 3e-3, "ema_decay": 0.0, "start": "/home/me/runs/demo/a"}
    names = {"input": "input_exponent", "cell": "cell_exponents", "detection": "event_config"}
    detector |= {"student": student} | {old: detector.pop(new) for old, new in names.items()}
    metadata = {"qkd_jax detector, version 1": json.dumps(document, indent=2)}
    return sealed(joined(header | {"__metadata__": metadata}, tensors))


def mutated(rng, files):
    data = rng.choice(files)
    cut = rng.choice((rng.randrange(len(data)), rng.randrange(16)))
    other = rng.choice(files)
    header, tensors = split(data)
    endings = ("multiplier", "bias", "_x", "_h", "mean", "std")
    names = [name for name in header if name.endswith(endings)]
    numbers = (*np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -1, 0]), np.int32(-(2**31)))
    lengths = (0, 1, 2, 7, len(data), len(data) - 8, 1 << 16, 1 << 20, 1 << 31, 1 << 60, (1 << 64) - 1)
    places = ("", '{"__metadata__":', '{"__metadata__":{"a":"')
    make, weight = zip(
        (lambda: mutate_bytes(rng, data), 1),
        (lambda: data[:cut], 1),
        (lambda: data + rng.randbytes(rng.choice((1, 8, 1000))), 1),
        (lambda: data[:cut] + other[rng.randrange(len(other)) :], 1),
        (lambda: struct.pack("<Q", rng.choice((*lengths, rng.randrange(1 << 64)))) + data[8:], 1),
        (lambda: joined("".join((bomb(rng), rng.choice(places))[::-1]), data), 1),
        (lambda: sealed(joined(header, mutate_bytes(rng, tensors))), 1),
        (lambda: with_array(data, rng.choice(names), rng.choice(numbers)), 2),
        (lambda: with_header(data, lambda header: mutate_tree(rng, header)), 3),
        (lambda: with_document(data, lambda document: mutate_tree(rng, document)), 2),
        (lambda: with_document(data, lambda document: mutate_tree(rng, document["detector"])), 4),
    )  # fmt: skip
    return rng.choices(make, weight)[0]()
