"""Damage to files, drawn from a seeded generator: to any bytes, and to what tables, trees, archives and models say.

A mutator is a function (rng, bytes) -> bytes; it raises ValueError or LookupError where there is nothing for it to do.
"""

import ast
import csv
import io
import json
import random
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Mutator = Callable[[random.Random, bytes], bytes]
Files = dict[str, bytes]
"""An input: the content of each file in a folder, by its path there."""

HOSTILE: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 7, 9, 10**9, 2**31, 2**63, 2**64, 10**400, 10**4000, 0.5, -1.5, 1e-300, 1e308, 1e999),
    *(True, None, "", "x", "a\nb\x1b[2J", "é" * 3000, "0" * 64, "I8", "BF16", "integer", "last", "attention"),
    *([], [1], [2**60, 2**60], [0, 2**63], [1] * 3000, ["x"] * 3000, {}, {"x": "y"}, {"a\nb": 1}),
    *(
        "../../x",
        "/etc/hostname",
        "a\0b",
        "\ud800",
        "\u202e\u2028",
        "NaN",
        "1e400",
        "-1",
        "x;" * 3000,
        '"',
        "a,b",
    ),
)
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    256,
    0x7FFF,
    0xFFFF,
    1 << 16,
    1 << 24,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
)
_KEYS = ("x", "lstm.9.w_h", "front.0.w", "a\nb", "student", "models")


def mutated(rng: random.Random, inputs: list[Files], mutators: Sequence[tuple[str, Mutator]]) -> Files:
    """One of the `inputs` with one to three faults, most by those of `mutators` that are for its suffix."""
    files = dict(rng.choice(inputs))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name, kind = rng.choice(sorted(files)), rng.randrange(10)
        if kind == 0 and len(files) > 1:
            del files[name]
        elif kind == 1 and len(files) > 1:
            files[name] = files[rng.choice(sorted(files))]
        else:
            special = [mutate for suffix, mutate in mutators if name.endswith(suffix)]
            mutate = rng.choice(special) if special and rng.random() < 0.7 else any_bytes
            files[name] = mutate(rng, files[name])
    return files


def any_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes, numbers and stretches of `data` replaced, cut, doubled, or moved."""
    if not data:
        return rng.randbytes(rng.choice((1, 8, 100)))
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    early = min(start, rng.randrange(64))
    size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    number = (rng.choice(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, order)
    return rng.choice(
        (
            lambda: mutate_bytes(rng, data),
            lambda: mutate_bytes(rng, data),
            lambda: data[:start] + number + data[start + size :],
            lambda: data[:early] + number + data[early + size :],
            lambda: data[:start],
            lambda: data[:early],
            lambda: data[:start] + data[end:],
            lambda: data[:end] + data[start:],
            lambda: data + rng.randbytes(rng.choice((1, 8, 1000))),
            lambda: data[:start] + data[start:end] * rng.choice((2, 50)) + data[end:],
        )
    )()


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Some of `data`, which isn't empty, replaced."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, 128, rng.randrange(256)))
    return bytes(changed)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in `tree`."""
    pairs: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield tree, key
        yield from places(value)


def mutate_tree(rng: random.Random, tree: Any) -> None:
    """Change one place of `tree`, of dictionaries and lists."""
    container, key = rng.choice(list(places(tree)))
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice((*_KEYS, key + key))] = container[key]
    elif kind == 1:
        container.append(container[key])
    elif kind == 2 and isinstance(container[key], int):
        container[key] += rng.choice((-1, 1, 2))
    elif kind == 3:
        container[key] = rng.choice(rng.choice(list(places(tree))))  # a container, or a key
    else:
        container[key] = rng.choice(HOSTILE)


def bomb(rng: random.Random) -> str:
    """Much of little: brackets, quotes, objects."""
    many = rng.choice(("[", '{"a":', "[1,", '"', "{}", '{"a":{"dtype":"U8","shape":[0],', "a.", "9", "\\"))
    return many * rng.randrange(1, 200_000 // len(many))


def json_text(rng: random.Random, data: bytes) -> bytes:
    """A place of the tree, or a bomb in place of a value."""
    if rng.randrange(10) == 0:
        return spliced(rng, data, bomb(rng))
    tree = [json.loads(data)]
    mutate_tree(rng, tree)
    return json.dumps(tree[0] if tree else None, indent=rng.choice((None, 2))).encode()


def json_lines(rng: random.Random, data: bytes) -> bytes:
    """As `json_text`, of one line; or lines doubled, swapped, joined."""
    lines = data.split(b"\n")
    index, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    if rng.randrange(4):
        lines[index] = json_text(rng, lines[index])
    else:
        lines[index] = rng.choice((lines[other], lines[other] * 2, b"", b"\0" * 100, b"null", b"[]", b"3"))
    return b"\n".join(lines)


def toml(rng: random.Random, data: bytes) -> bytes:
    """As `json_text`, of a TOML file."""
    if rng.randrange(10) == 0:
        return spliced(rng, data, bomb(rng))
    tree = tomllib.loads(data.decode())
    mutate_tree(rng, tree)
    return "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in tree.items()).encode()


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return {"null": "1979-05-27", "Infinity": "inf"}.get(text := json.dumps(value), text)


def spliced(rng: random.Random, data: bytes, text: str) -> bytes:
    """`data` with `text` for what follows one of its signs."""
    signs = [index for index, byte in enumerate(data) if byte in b':=[,"\n']
    start = rng.choice(signs) + 1
    return data[:start] + text.encode() + data[min(len(data), start + rng.randrange(20)) :]


def table(rng: random.Random, data: bytes) -> bytes:
    """A cell, a row or a column of comma- or tab-separated text."""
    delimiter = "\t" if b"\t" in data else ","
    rows = list(csv.reader(io.StringIO(data.decode()), delimiter=delimiter))
    row = rng.choice(rows)
    column = rng.randrange(len(row))
    kind = rng.randrange(8)
    if kind == 0:
        del row[column]
    elif kind == 1:
        row.append(rng.choice(row))
    elif kind == 2:
        rows.append(list(row))
    elif kind == 3:
        rows.remove(row)
    elif kind == 4:
        row[column] = rng.choice(rng.choice(rows))
    else:
        row[column] = str(rng.choice(HOSTILE))
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n", "\r"))).writerows(rows)
    return text.getvalue().encode("utf-8", rng.choice(("surrogatepass", "replace")))


def npy(rng: random.Random, data: bytes) -> bytes:
    """A header of NumPy's that lies, or an array of other numbers."""
    length = int.from_bytes(data[8:10], "little")
    header, body = ast.literal_eval(data[10 : 10 + length].decode()), data[10 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        header["descr"] = rng.choice(
            (
                "<f8",
                ">f4",
                "|O",
                "<U9",
                "|b1",
                "<i4",
                "<c8",
                "|V0",
                "<f2",
                "<U0",
                "<M8[ns]",
                [("x", "<f4")],
                7,
            )
        )
    elif kind == 1:
        header["fortran_order"] = rng.choice((True, 1, None))
    elif kind == 2:
        header[rng.choice(("x", "shape"))] = rng.choice(HOSTILE)
    elif kind == 3:
        number = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\xff", b"\0\0\0\x80"))
        start = 4 * rng.randrange(len(body) // 4)
        body = body[:start] + number + body[start + 4 :]
    else:
        sizes = list(header["shape"]) or [0]
        sizes[rng.randrange(len(sizes))] = rng.choice(
            (-1, 0, 1, 2, 10**9, 2**40, 2**63, 2**64, 2.5, True, None)
        )
        header["shape"] = rng.choice(
            (tuple(sizes), (*sizes, 1), tuple(sizes[:-1]), (*sizes, 0), tuple(reversed(sizes)), sizes)
        )
    text = rng.choice((repr(header), repr(header), repr(header), bomb(rng)[:60_000])) + "\n"
    return data[:8] + struct.pack("<H", len(text)) + text.encode() + body


def zip_members(rng: random.Random, data: bytes) -> bytes:
    """An archive one of whose members was changed, dropped, doubled, renamed or blown up; its sums are right."""
    members = _members(data)
    names = sorted(members)
    name = rng.choice(names)
    kind = rng.randrange(10)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[rng.choice(("x.npy", "../x.npy", "/etc/x", "a\nb"))] = members.pop(name)
    elif kind == 2:
        members[name] = members[rng.choice(names)]
    elif kind == 3 and rng.randrange(10) == 0:  # 300 MB in 300 KB
        text = members[name]
        length = 10 + int.from_bytes(text[8:10], "little")
        members[name] = text[:length] + bytes(300 << 20)
    else:
        members[name] = (npy if name.endswith(".npy") else json_text)(rng, members[name])
    return _zipped(members)


def _members(data: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(members: Files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def head(rng: random.Random, data: bytes) -> bytes:
    """A rare number in the first 100 bytes, where recordings say their rate, channels and length."""
    start, size = rng.randrange(min(100, len(data))), rng.choice((1, 2, 3, 4, 8))
    number = (rng.choice(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, rng.choice(("little", "big")))
    return data[:start] + number + data[start + size :]


def ogg(rng: random.Random, data: bytes) -> bytes:
    """A page of an Ogg file with other bytes in it, and the sum that belongs to them."""
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    index = rng.randrange(len(pages))
    page = bytearray((head if rng.randrange(2) else mutate_bytes)(rng, pages[index]))
    page[22:26] = bytes(4)
    page[22:26] = _ogg_sum(page).to_bytes(4, "little")
    pages[index] = bytes(page)
    return b"".join(pages)


def _ogg_sum(page: bytes | bytearray) -> int:
    # zlib's polynomial, but from the highest bit on, and without its complements.
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in page)
    found = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)


def onnx(rng: random.Random, data: bytes) -> bytes:
    """A field of an ONNX model, somewhere in its tree, set, cleared, or doubled."""
    from onnx import ModelProto

    model = ModelProto.FromString(data)
    message, field = rng.choice(list(_fields(model)))
    repeated, value = field.is_repeated, getattr(message, field.name)
    if rng.randrange(4) == 0:
        message.ClearField(field.name)
    elif field.message_type is not None:
        if not repeated:
            value.Clear()
        elif rng.randrange(2):
            value.append(rng.choice(value))
        else:
            del value[rng.randrange(len(value))]
    else:
        kinds = {field.CPPTYPE_STRING: str, field.CPPTYPE_FLOAT: float}
        new = rng.choice([item for item in HOSTILE if type(item) is kinds.get(field.cpp_type, int)])
        if field.type == field.TYPE_BYTES:
            new = new.encode("utf-8", "replace")
        if repeated:
            value[rng.randrange(len(value))] = new
        else:
            setattr(message, field.name, new)
    return model.SerializeToString()


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every (message, field) that is set in `message`, and in those within it."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from _fields(item)


def tflite(rng: random.Random, data: bytes) -> bytes:
    """A field of a LiteRT model, somewhere in its tree, set, cleared, or doubled."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    owner, name = rng.choice(list(_attributes(model)))
    value = getattr(owner, name)
    if hasattr(value, "__len__") and len(value) and rng.randrange(4):
        items = list(value)
        index = rng.randrange(len(items))
        if rng.randrange(4) == 0:
            items.append(items[index])
        elif rng.randrange(4) == 0:
            del items[index]
        elif not hasattr(items[index], "__dict__"):
            items[index] = rng.choice((-1, 0, 1, 2, 3, 7, 100, 2**31 - 1, -(2**31)))
        setattr(owner, name, items)
    elif isinstance(value, bool | int | float):
        setattr(owner, name, rng.choice((-1, 0, 1, 2, 3, 7, 40, 100, 127, 2**31 - 1)))
    else:
        setattr(owner, name, None)
    builder = Builder()
    try:
        builder.Finish(model.Pack(builder), b"TFL3")
    except Exception as error:  # what the format can't say
        raise ValueError(str(error)) from None
    return bytes(builder.Output())


def _attributes(owner: Any) -> Iterator[tuple[Any, str]]:
    """Every (object, attribute) of a model that flatbuffers unpacked."""
    for name, value in vars(owner).items():
        if value is None:
            continue
        yield owner, name
        for item in value if isinstance(value, list) else [value]:
            if hasattr(item, "__dict__"):
                yield from _attributes(item)


MUTATORS: tuple[tuple[str, Mutator], ...] = (
    *((suffix, table) for suffix in (".csv", ".tsv")),
    *((suffix, head) for suffix in (".wav", ".flac", ".aiff", ".au", ".caf", ".w64", ".rf64", ".mp3")),
    *((suffix, ogg) for suffix in (".ogg", ".opus")),
    *((suffix, json_text) for suffix in (".json", "METADATA", "metrics", ".zarray")),
    (".jsonl", json_lines),
    (".toml", toml),
    (".npy", npy),
    (".npz", zip_members),
    (".onnx", onnx),
    (".tflite", tflite),
)
"""What is made for files whose names end so."""
