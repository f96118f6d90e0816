"""Damage to files, drawn from a seeded generator: to any bytes, and to the content of tables and trees.

A mutator is a function (rng, bytes) -> bytes; it raises any exception if there is nothing to change.
"""

import csv
import io
import json
import random
import tomllib
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
_NUMBERS = (
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
_KEYS = ("x", "lstm.9.w_h", "front.0.w", "a\nb", "network", "models")


def mutated(rng: random.Random, inputs: list[Files], mutators: Sequence[tuple[str, Mutator]]) -> Files:
    """One of the `inputs` with one to three faults, most of them by the `mutators` for its suffix."""
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
    number = rare_number(rng, rng.choice((2, 4, 8)))
    return rng.choice(
        (
            lambda: mutate_bytes(rng, data),
            lambda: mutate_bytes(rng, data),
            lambda: data[:start] + number + data[start + len(number) :],
            lambda: data[:early] + number + data[early + len(number) :],
            lambda: data[:start],
            lambda: data[:early],
            lambda: data[:start] + data[end:],
            lambda: data[:end] + data[start:],
            lambda: data + rng.randbytes(rng.choice((1, 8, 1000))),
            lambda: data[:start] + data[start:end] * rng.choice((2, 50)) + data[end:],
        )
    )()


def rare_number(rng: random.Random, size: int) -> bytes:
    """A number that code often forgets, in `size` bytes."""
    return (rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(
        size, "big" if rng.randrange(2) else "little"
    )


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """`data`, which isn't empty, with some bytes replaced."""
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
    """Change one place of `tree`, which consists of dictionaries and lists."""
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
    """A long repetition of brackets, quotes or objects."""
    many = rng.choice(("[", '{"a":', "[1,", '"', "{}", '{"a":{"dtype":"U8","shape":[0],', "a.", "9", "\\"))
    return many * rng.randrange(1, 200_000 // len(many))


def json_text(rng: random.Random, data: bytes) -> bytes:
    """Change a place of the tree, or put a bomb in place of a value."""
    if rng.randrange(10) == 0:
        return spliced(rng, data, bomb(rng))
    tree = [json.loads(data)]
    mutate_tree(rng, tree)
    return json.dumps(tree[0] if tree else None, indent=rng.choice((None, 2))).encode()


def json_lines(rng: random.Random, data: bytes) -> bytes:
    """Change one line as `json_text` does, or double, swap or join lines."""
    lines = data.split(b"\n")
    index, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    if rng.randrange(4):
        lines[index] = json_text(rng, lines[index])
    else:
        lines[index] = rng.choice((lines[other], lines[other] * 2, b"", b"\0" * 100, b"null", b"[]", b"3"))
    return b"\n".join(lines)


def toml(rng: random.Random, data: bytes) -> bytes:
    """Change a TOML file as `json_text` does."""
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
    """`data` with `text` in place of what follows one of its delimiters."""
    signs = [index for index, byte in enumerate(data) if byte in b':=[,"\n']
    start = rng.choice(signs) + 1
    return data[:start] + text.encode() + data[min(len(data), start + rng.randrange(20)) :]


def table(rng: random.Random, data: bytes) -> bytes:
    """Change a cell, a row or a column of comma- or tab-separated text."""
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
