"""Damage to files, drawn from a seeded generator: to any bytes, and to their content by format.

A mutator is a function (rng, bytes) -> bytes; it raises any exception if there is nothing to change.  Lengths
and checksums are right afterwards, so that the damage gets past them.
"""

import ast
import codecs
import csv
import io
import json
import random
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Mutator = Callable[[random.Random, bytes], bytes]
Files = dict[str, bytes]
"""An input: the content of each file in a folder, by its path there."""

_LONG = ("é" * 3000, "0" * 64, "x;" * 3000, [1] * 3000, ["x"] * 3000)
_WORDS = ("", "x", "a\nb\x1b[2J", "a\0b", "\ud800", "\u202e\u2028", '"', "a,b", "../../x", "/etc/hostname")
_TYPES = "NaN 1e400 -1 I8 BF16 <f8 >f4 |O <U9 |b1 <c8 |V0 <f2 <U0 <M8[ns] integer last"
_INTEGERS = (-1, 0, 1, 2, 3, 7, 9, 10**9, 2**31, 2**40, 2**63, 2**64, 10**400, 10**4000)
_FLOATS = (0.5, -1.5, 1e-300, 1e308, 1e999)
_TREES: tuple[Any, ...] = ([], [1], [2**60, 2**60], [0, 2**63], {}, {"x": "y"}, {"a\nb": 1})
HOSTILE: tuple[Any, ...] = (*_INTEGERS, *_FLOATS, *_WORDS, *_TYPES.split(), *_TREES, *_LONG, True, None)
_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    256,
    *((1 << bits) - less for bits in (15, 16, 24, 31, 32) for less in (0, 1)),
)
_KEYS = ("x", "lstm.9.w_h", "front.0.w", "a\nb", "network", "models")


def mutated(rng: random.Random, inputs: list[Files], mutators: Mapping[str, Mutator]) -> Files:
    """One of the `inputs` with one to three faults, most of them by the mutator for its suffix."""
    files = dict(rng.choice(inputs))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name, kind = rng.choice(sorted(files)), rng.randrange(10)
        if kind == 0 and len(files) > 1:
            del files[name]
        elif kind == 1 and len(files) > 1:
            files[name] = files[rng.choice(sorted(files))]
        else:
            special = [mutate for suffix, mutate in mutators.items() if name.endswith(suffix)]
            mutate = special[0] if special and rng.random() < 0.7 else any_bytes
            files[name] = mutate(rng, files[name])
    return files


def any_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes, numbers and stretches of `data` replaced, cut, doubled, or moved."""
    if not data:
        return rng.randbytes(rng.choice((1, 8, 100)))
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    early, number = min(start, rng.randrange(64)), rare_number(rng, rng.choice((2, 4, 8)))
    return rng.choice(
        (
            *[mutate_bytes(rng, data)] * 2,
            *(data[:at] + number + data[at + len(number) :] for at in (start, early)),
            *(data[:at] + data[after:] for at in (start, early) for after in (end, len(data))),
            data[:end] + data[start:],
            data + rng.randbytes(rng.choice((1, 8, 1000))),
            data[:start] + data[start:end] * rng.choice((2, 50)) + data[end:],
        )
    )


def rare_number(rng: random.Random, size: int) -> bytes:
    """A number that code often forgets, in `size` bytes."""
    number = rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)
    return number.to_bytes(size, "big" if rng.randrange(2) else "little")


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """`data`, which isn't empty, with some bytes replaced."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, 128, rng.randrange(256)))
    return bytes(changed)


def head(rng: random.Random, data: bytes) -> bytes:
    """Put a rare number in the first 100 bytes, where recordings have their rate, channels and length."""
    start, number = rng.randrange(min(100, len(data))), rare_number(rng, rng.choice((1, 2, 3, 4, 8)))
    return data[:start] + number + data[start + len(number) :]


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in `tree`, whose objects count as dictionaries, and short arrays as lists."""
    tree = vars(tree) if hasattr(tree, "__dict__") else tree
    sequence = isinstance(tree, list) or (isinstance(tree, np.ndarray) and tree.size < 99)
    pairs: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if sequence else ()
    for key, value in pairs:
        yield tree, key
        yield from places(value)


def mutate_tree(rng: random.Random, tree: Any) -> None:
    """Change one place of `tree`, which consists of dictionaries and lists."""
    container, key = rng.choice(list(places(tree)))
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice((*_KEYS, key + key))] = container[key]
    elif kind == 1:
        container.append(container[key])
    elif kind == 2 and isinstance(container[key], int | np.integer):
        container[key] += rng.choice((-1, 1, 2))
    elif kind == 3:
        container[key] = rng.choice(rng.choice(list(places(tree))))  # a container, or a key
    else:
        container[key] = rng.choice(HOSTILE)


def bomb(rng: random.Random) -> str:
    """A long repetition of brackets, quotes or objects."""
    many = rng.choice(("[", '{"a":', "[1,", '"', "{}", '{"a":{"dtype":"U8","shape":[0],', "a.", "9", "\\"))
    return many * rng.randrange(1, 200_000 // len(many))


def _spliced(rng: random.Random, data: bytes) -> bytes:
    """`data` with a bomb in place of what follows one of its delimiters."""
    start = rng.choice([index for index, byte in enumerate(data) if byte in b':=[,"\n']) + 1
    return data[:start] + bomb(rng).encode() + data[min(len(data), start + rng.randrange(20)) :]


def json_text(rng: random.Random, data: bytes) -> bytes:
    """Change a place of the tree, or put a bomb in place of a value."""
    if rng.randrange(10) == 0:
        return _spliced(rng, data)
    tree = [json.loads(data)]
    mutate_tree(rng, tree)
    return json.dumps(tree[0] if tree else None, indent=rng.choice((None, 2))).encode()


def json_lines(rng: random.Random, data: bytes) -> bytes:
    """Change one line as `json_text` does, or double, swap or join lines."""
    lines = data.split(b"\n")
    index, other = rng.randrange(len(lines)), rng.choice(lines)
    odd = rng.choice((other, other * 2, b"", b"\0" * 100, b"null", b"[]", b"3"))
    lines[index] = json_text(rng, lines[index]) if rng.randrange(4) else odd
    return b"\n".join(lines)


def toml(rng: random.Random, data: bytes) -> bytes:
    """Change a TOML file as `json_text` does."""
    if rng.randrange(10) == 0:
        return _spliced(rng, data)
    tree = tomllib.loads(data.decode())
    mutate_tree(rng, tree)
    return "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in tree.items()).encode()


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return {"null": "1979-05-27", "Infinity": "inf"}.get(text := json.dumps(value), text)


def table(rng: random.Random, data: bytes) -> bytes:
    """Change a cell or a row of a table, in UTF-8 or UTF-16, separated by commas, tabs or semicolons."""
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"
    content = data.decode(encoding)
    delimiter = max(",\t;", key="".join(content.splitlines()[:2]).count)
    rows = list(csv.reader(io.StringIO(content), delimiter=delimiter))
    mutate_tree(rng, rows)
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n", "\r"))).writerows(rows)
    return text.getvalue().encode(encoding, rng.choice(("surrogatepass", "replace")))


def npy(rng: random.Random, data: bytes) -> bytes:
    """Make the header of a NumPy file lie, or change a number of its array."""
    length = int.from_bytes(data[8:10], "little")
    header, body = ast.literal_eval(data[10 : 10 + length].decode()), data[10 + length :]
    if rng.randrange(6) == 0:
        number = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\xff", b"\0\0\0\x80"))
        start = 4 * rng.randrange(len(body) // 4)
        body = body[:start] + number + body[start + 4 :]
    else:
        header["shape"] = list(header["shape"])
        mutate_tree(rng, header)
        if isinstance(header.get("shape"), list) and rng.randrange(10):
            header["shape"] = tuple(header["shape"])
    text = rng.choice((repr(header), repr(header), repr(header), bomb(rng)[:60_000])) + "\n"
    return data[:8] + struct.pack("<H", len(text)) + text.encode() + body


def zip_members(rng: random.Random, data: bytes) -> bytes:
    """Change, drop, double, rename or inflate a member of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name, other = (rng.choice(sorted(members)) for _ in range(2))
    kind = rng.randrange(10)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[rng.choice(("x.npy", "../x.npy", "/etc/x", "a\nb"))] = members.pop(name)
    elif kind == 2:
        members[name] = members[other]
    elif kind == 3 and rng.randrange(10) == 0:  # 64 MB in 64 KB
        members[name] = members[name][: 10 + int.from_bytes(members[name][8:10], "little")] + bytes(64 << 20)
    else:
        members[name] = (npy if name.endswith(".npy") else json_text)(rng, members[name])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def ogg(rng: random.Random, data: bytes) -> bytes:
    """Change bytes of a page of an Ogg file, and correct its checksum."""
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    index = rng.randrange(len(pages))
    page = bytearray((head if rng.randrange(2) else mutate_bytes)(rng, pages[index]))
    page[22:26] = bytes(4)
    # zlib's polynomial, but starting at the highest bit, and without its complements.
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in page)
    checksum = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    page[22:26] = int(f"{checksum:032b}"[::-1], 2).to_bytes(4, "little")
    pages[index] = bytes(page)
    return b"".join(pages)


def onnx(rng: random.Random, data: bytes) -> bytes:
    """Change a place in the tree of an ONNX model."""
    from google.protobuf import json_format
    from onnx import ModelProto

    tree = json_format.MessageToDict(ModelProto.FromString(data))
    mutate_tree(rng, tree)
    return json_format.ParseDict(tree, ModelProto()).SerializeToString()


def tflite(rng: random.Random, data: bytes) -> bytes:
    """Change a place in the tree of a LiteRT model."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    mutate_tree(rng, model)
    builder = Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


MUTATORS: dict[str, Mutator] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), table),
    **dict.fromkeys((".wav", ".flac", ".aiff", ".au", ".caf", ".w64", ".rf64", ".mp3"), head),
    **dict.fromkeys((".ogg", ".opus"), ogg),
    **dict.fromkeys((".json", "METADATA", "metrics", "_sharding", "/process_0"), json_text),
    **{".jsonl": json_lines, ".toml": toml, ".npy": npy, ".npz": zip_members},
    **{".onnx": onnx, ".tflite": tflite},
}
"""By suffix of the file."""
