"""Damage to arrays, archives, recordings and models, with lengths and checksums corrected afterwards."""

import ast
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from benchmarks.reliability.mutate import (
    HOSTILE,
    Files,
    Mutator,
    bomb,
    json_lines,
    json_text,
    mutate_bytes,
    rare_number,
    table,
    toml,
)


def npy(rng: random.Random, data: bytes) -> bytes:
    """Make the header of a NumPy file lie, or change a number of its array."""
    length = int.from_bytes(data[8:10], "little")
    header, body = ast.literal_eval(data[10 : 10 + length].decode()), data[10 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        kinds = (
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
        header["descr"] = rng.choice(kinds)
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
    """Change, drop, double, rename or inflate a member of an archive, whose checksums are then right."""
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
    elif kind == 3 and rng.randrange(10) == 0:  # 64 MB in 64 KB
        text = members[name]
        length = 10 + int.from_bytes(text[8:10], "little")
        members[name] = text[:length] + bytes(64 << 20)
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
    """Put a rare number in the first 100 bytes, where recordings have their rate, channels and length."""
    start, number = rng.randrange(min(100, len(data))), rare_number(rng, rng.choice((1, 2, 3, 4, 8)))
    return data[:start] + number + data[start + len(number) :]


def ogg(rng: random.Random, data: bytes) -> bytes:
    """Change bytes of a page of an Ogg file, and correct its checksum."""
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    index = rng.randrange(len(pages))
    page = bytearray((head if rng.randrange(2) else mutate_bytes)(rng, pages[index]))
    page[22:26] = bytes(4)
    page[22:26] = _ogg_sum(page).to_bytes(4, "little")
    pages[index] = bytes(page)
    return b"".join(pages)


def _ogg_sum(page: bytes | bytearray) -> int:
    # zlib's polynomial, but starting at the highest bit, and without its complements.
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in page)
    found = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)


def onnx(rng: random.Random, data: bytes) -> bytes:
    """Set, clear or double a field somewhere in the tree of an ONNX model."""
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
        new: Any = rng.choice([item for item in HOSTILE if type(item) is kinds.get(field.cpp_type, int)])
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
    """Set, clear or double a field somewhere in the tree of a LiteRT model."""
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
    except Exception as error:  # what the format can't express
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
    *((suffix, json_text) for suffix in (".json", "METADATA", "metrics", "_sharding", "/process_0")),
    (".jsonl", json_lines),
    (".toml", toml),
    (".npy", npy),
    (".npz", zip_members),
    (".onnx", onnx),
    (".tflite", tflite),
)
"""By suffix of the file, the mutators for it."""
