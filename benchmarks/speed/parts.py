"""What the time of a compiled step goes into: which operations hold it."""

import re
import tempfile
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import jax

from benchmarks.speed.turns import Call

KINDS = ("convolution", "dot", "gather", "scatter", "reduce-window", "reduce", "concatenate")
"""What an operation counts as that is one of these, or has one fused into it; the first of several."""
OTHERS = "element by element"
AROUND = ("while", "call", "conditional")
"""Operations whose time is that of others."""
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(")


def waited(step: Any, *args: Any) -> Any:
    """What a jitted `step` makes of `args`, when all of it is computed."""
    return jax.block_until_ready(step(*args))


def parts(call: Call, calls: int = 3) -> str:
    """The shares of each kind in the time of all operations of `call`, a partial of `waited`, in words.

    "back" are those that come of a derivative.
    """
    assert isinstance(call, partial)
    step, *args = call.args
    kinds = operations(step.lower(*args).compile().as_text())
    seconds: Counter[str] = Counter()
    for name, took in profiled(call, calls).items():
        if not name.startswith(AROUND):
            seconds[kinds.get(name, OTHERS)] += took
    shares = {kind: took / seconds.total() for kind, took in seconds.most_common()}
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.01)


def operations(hlo: str) -> dict[str, str]:
    """The kind of each operation of a compiled program, by its name."""
    opcodes, lines, computation = defaultdict[str, set[str]](set), {}, ""
    for line in hlo.splitlines():
        if begins := COMPUTATION.match(line):
            computation = begins[1]
        elif found := INSTRUCTION.match(line):
            opcodes[computation].add(found[2])
            lines[found[1]] = found[2], line
    kinds = {}
    for name, (opcode, line) in lines.items():
        fused = re.search(r"calls=%?([\w.-]+)", line)
        within = {opcode} | (opcodes[fused[1]] if fused else set())
        kinds[name] = next((kind for kind in KINDS if kind in within), OTHERS) + " back" * (
            "transpose(" in line
        )
    return kinds


def profiled(call: Call, calls: int) -> Counter[str]:
    """Nanoseconds of each of XLA's operations in so many calls, on all threads."""
    call()
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if operation := dict(event.stats).get("hlo_op"):
                    found[operation] += event.duration_ns
    return found
