"""Thousands of damaged and hostile files, in a process of bounded memory and time: InputError, or a detector.

Run as a program, this file is that process: FOLDER INPUTS SEED.
"""

import json
import os
import random
import struct
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MEMORY, SECONDS = 1 << 30, 10
"""Beyond what the process has before the first file, and for one file."""

HOSTILE = (
    *(-1, 0, 1, 2, 7, 9, 10**9, 2**31, 2**63, 2**64, 10**400, 10**4000, 0.5, -1.5, 1e-300, 1e308, 1e999),
    *(True, None, "", "x", "a\nb\x1b[2J", "é" * 3000, "0" * 64, "I8", "BF16", "integer", "last", "attention"),
    *([], [1], [2**60, 2**60], [0, 2**63], [1] * 3000, ["x"] * 3000, {}, {"x": "y"}, {"a\nb": 1}),
)


def split(data):
    """The header of a .safetensors file, as JSON says it, and the bytes of its tensors."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, tensors):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def sealed(data):
    """`data` with the checksum that belongs to it, if it still has a place for one."""
    mark = b'\\"sha256\\": \\"'
    begin = data.find(mark) + len(mark)
    if mark not in data:
        return data
    before, after = data[:begin], data[begin + 64 :]
    return before + sha256(before + b"0" * 64 + after).hexdigest().encode() + after


def with_document(data, change):
    """`data` sealed anew, once `change` has been at what its metadata say."""
    header, tensors = split(data)
    ((form, text),) = header["__metadata__"].items()
    document = json.loads(text)
    change(document)
    return sealed(joined(header | {"__metadata__": {form: json.dumps(document, indent=2)}}, tensors))


def with_header(data, change):
    """`data` sealed anew, once `change` has been at its header."""
    header, tensors = split(data)
    change(header)
    return sealed(joined(header, tensors))


def with_array(data, name, numbers):
    """`data` sealed anew, with `numbers` for the first of the tensor `name`."""
    header, tensors = split(data)
    begin, _ = header[name]["data_offsets"]
    numbers = np.asarray(numbers).tobytes()
    return sealed(joined(header, tensors[:begin] + numbers + tensors[begin + len(numbers) :]))


def places(tree):
    """Every (container, key) in `tree`."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield tree, key
        yield from places(value)


def mutate_tree(rng, tree):
    container, key = rng.choice(list(places(tree)))
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice(("x", "lstm.9.w_h", "front.0.w", "a\nb", key + key))] = container[key]
    elif kind == 1:
        container.append(container[key])
    elif kind == 2 and isinstance(container[key], int):
        container[key] += rng.choice((-1, 1, 2))
    elif kind == 3:
        container[key] = rng.choice(rng.choice(list(places(tree))))  # a container, or a key
    else:
        container[key] = rng.choice(HOSTILE)


def mutate_bytes(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] = rng.choice((0, 255, 128, rng.randrange(256)))
    return bytes(data)


def mutate_length(rng, data):
    known = (0, 1, 2, 7, len(data), len(data) - 8, 1 << 16, 1 << 20, 1 << 31, 1 << 60, (1 << 64) - 1)
    return struct.pack("<Q", rng.choice((*known, rng.randrange(1 << 64)))) + data[8:]


def bomb(rng, data):
    many = rng.choice(("[", '{"a":', "[1,", '"', "{}", '{"a":{"dtype":"U8","shape":[0],'))
    text = many * rng.randrange(1, 200_000 // len(many))
    return joined(rng.choice((text, f'{{"__metadata__":{text}', f'{{"__metadata__":{{"a":"{text}')), data)


def mutate_array(rng, data):
    """A number of a tensor becomes a rare one."""
    names = [
        name for name in split(data)[0] if name.endswith(("multiplier", "bias", "_x", "_h", "mean", "std"))
    ]
    floats = np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -1, 0])
    return with_array(data, rng.choice(names), rng.choice((*floats, np.int32(-(2**31)))))


def mutated(rng, files):
    data = rng.choice(files)
    cut = rng.choice((rng.randrange(len(data)), rng.randrange(16)))
    other = rng.choice(files)
    header, tensors = split(data)
    make, weight = zip(
        (lambda: mutate_bytes(rng, data), 1),
        (lambda: data[:cut], 1),
        (lambda: data + rng.randbytes(rng.choice((1, 8, 1000))), 1),
        (lambda: data[:cut] + other[rng.randrange(len(other)) :], 1),
        (lambda: mutate_length(rng, data), 1),
        (lambda: bomb(rng, data), 1),
        (lambda: sealed(joined(header, mutate_bytes(rng, tensors))), 1),
        (lambda: mutate_array(rng, data), 2),
        (lambda: with_header(data, lambda header: mutate_tree(rng, header)), 3),
        (lambda: with_document(data, lambda document: mutate_tree(rng, document)), 2),
        (lambda: with_document(data, lambda document: mutate_tree(rng, document["detector"])), 4),
    )  # fmt: skip
    return rng.choices(make, weight)[0]()


def main(folder, inputs, seed):
    """Load `inputs` mutated files; prints how many were refused, and how many loaded."""
    import resource
    import signal
    import warnings

    from qkd_jax.config import InputError
    from qkd_jax.deploy import artefact, reference
    from tests.detectors import DEEP, FRONT, PLAIN, random_detector

    path = folder / "fuzzed.safetensors"
    files = []
    for student in (PLAIN, FRONT, DEEP):
        artefact.save(random_detector(student, mels=8), path, {"run": "fuzz"})
        files.append(path.read_bytes())
    warnings.simplefilter("error")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    counts = {"refused": 0, "loaded": 0}
    for index in range(inputs):
        rng = random.Random(f"{seed} {index}")
        try:
            data = mutated(rng, files)
        except (ValueError, LookupError):
            continue  # JSON can't say it, or there is nothing to mutate
        path.write_bytes(data)
        signal.alarm(SECONDS)
        try:
            detector = artefact.load(path)
        except InputError as error:
            counts["refused"] += 1
            message = str(error)
            assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 600, message
        else:
            counts["loaded"] += 1
            # What is loaded can be run: no arithmetic fails or warns.
            half = 2 ** (detector.student.quant.activations - 1)
            codes = np.full((40, detector.features.n_mels), rng.choice((-half, half - 1)), np.int32)
            reference.clip_logits(detector, codes)
        signal.alarm(0)
    print(json.dumps(counts))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded as Linux does")
@pytest.mark.parametrize(("inputs", "seed"), [(2000, 0), pytest.param(30_000, 1, marks=pytest.mark.slow)])
def test_only_input_errors_escape(tmp_path, inputs, seed):
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(inputs), str(seed)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    # After a failure the folder has the file that made it.
    assert done.returncode == 0, f"{tmp_path}: {done.returncode}\n{done.stderr[-3000:]}"
    counts = json.loads(done.stdout)
    assert min(counts["refused"], counts["loaded"]) > inputs / 10  # neither way is the only one


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
