"""What benchmarks and experiments share: the machine in words, tables, and pages that hold them."""

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
EVENTS = ("dog", "baby_cry", "gunshot")
"""Events of the standard set."""
DASH = "–"


def argument_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows `description` as it is."""
    return argparse.ArgumentParser(
        prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["model", "EER"], [["teacher", "16.86"]]))
    | model | EER |
    | --- | --- |
    | teacher | 16.86 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """The mean of the values of several seeds or folds ± half their range.

    >>> spread([12.0, 13.0]), spread([12.0])
    ('12.50 ± 0.50', '12.00')
    """
    half = f" ± {np.ptp(values) / 2:.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{half}"


def signed(value: float) -> str:
    """A number with its sign and one decimal.

    >>> signed(-2.25), signed(0)
    ('−2.2', '0')
    """
    return f"{value:+.1f}".replace("-", "−") if value else "0"


def processor() -> str:
    """The processor and the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    name, info = platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        names = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(names, f": {name}").partition(": ")[2]
    return f"{name}, {cores} core{'s' * (cores != 1)}"


def versions(*packages: str) -> str:
    """The versions of those `packages` that are installed."""
    installed = []
    for package in packages:
        try:
            installed.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(installed)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, which appears whole or not at all."""
    with whole_file(path, "w") as file:
        file.write(json.dumps(value, indent=1) + "\n")


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Replace what stands on `page` between `<!-- begin NAME -->` and `<!-- end NAME -->` by `parts[NAME]`.

    Raises InputError unless the page has each of the parts once, and no other.
    """
    with whole_file(page, "w") as file:
        file.write(filled(page.read_text(), parts, page))


def filled(text: str, parts: Mapping[str, str], page: object = "page") -> str:
    """`text` with its marked parts replaced (see `fill`)."""
    marks = re.findall(r"<!-- begin ([\w-]+) -->", text)
    if sorted(marks) != sorted(parts):
        raise InputError(f"{page}: expected the marked parts {', '.join(parts)}, found {', '.join(marks)}")
    for name, content in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise InputError(f"{page}: expected {end} after {begin}, found none")
        text = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return text
