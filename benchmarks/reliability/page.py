"""Writes docs/results/reliability.md from what the commands beside this one have counted.

python -m benchmarks.reliability.page [--folder docs/results/reliability]
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from benchmarks.reliability.fuzz import FINE
from benchmarks.reliability.soak import table as soak_table
from benchmarks.text import markdown
from qkd_jax.commands.cli import override, run_command
from qkd_jax.errors import InputError
from qkd_jax.system.files import whole_file

ROOT = Path(__file__).parents[2]
SET = 2_000_000
"""Recordings in AudioSet."""
FULL_MS, FULL_KB = 4.8, 255.6
"""Of a recording of 10 s: a core's time for its features at most, as two cores take 7.23 s for 3,000
(docs/results/speed/cpu/files.json), and their size."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the tallies lie; the page is written beside the folder."""

    folder: str = str(ROOT / "docs/results/reliability")
    """With kills.json, fuzz.json, soak.json and prepare.json."""


def page(kills: Any, fuzz: Any, soak: Any, prepare: Any) -> str:
    """The whole page: page.md, filled in."""
    own = {
        "kills": kills_fields(kills),
        "fuzz": fuzz_fields(fuzz),
        "soak": {"table": soak_table(soak)},
        "prepare": prepare_fields(prepare),
    }
    fields = {f"{part}_{name}": value for part, values in own.items() for name, value in values.items()}
    text = Path(__file__).with_suffix(".md").read_text()
    return text.format(kills=kills, fuzz=fuzz, soak=soak, prepare=prepare, **fields)


def kills_fields(tally: Any) -> dict[str, Any]:
    """How often a run was killed in each phase."""
    counts = tally["kills"]
    rows = [[name, str(count)] for name, count in counts.items()]
    return {"total": sum(counts.values()), "table": markdown(["killed at", "times"], rows)}


def fuzz_fields(tally: Any) -> dict[str, Any]:
    """How each reader ended; raises InputError if one ended otherwise than the page says."""
    targets = tally["targets"]
    if odd := {name: of["ends"] for name, of in targets.items() if set(of["ends"]).difference(FINE)}:
        raise InputError(f"fuzz.json: expected each input to be read or refused, found {odd}")
    rows = [
        [
            name,
            *(f"{of['ends'].get(end, 0):,}" for end in ("read", "refused", "crash caught")),
            f"{of['slowest']:.2f}",
            str(of["peak_mb"]),
        ]
        for name, of in targets.items()
    ]
    header = ["reader of", "read", "refused", "crashes caught", "slowest, s", "memory, MB"]
    inputs = min(of["inputs"] for of in targets.values())
    return {"table": markdown(header, rows), "inputs": inputs, "targets": len(targets)}


def prepare_fields(tally: Any) -> dict[str, Any]:
    """What each size took, and what two million would."""
    rows = tally["rows"]
    first, last = rows[0], rows[-1]
    taught = [row for row in rows if row["asked of a tagger"]][-1]
    made_ms = 1e3 * taught["CPU seconds"] / taught["made"]
    again_ms = 1e3 * taught["CPU seconds again"] / taught["recordings"]
    slope = 1e6 * (last["peak MB"] - first["peak MB"]) / (last["recordings"] - first["recordings"])
    full_hours, made_hours = (SET * ms / 3.6e6 for ms in (FULL_MS, made_ms))
    return {
        "table": markdown(list(first), [[f"{value:,}" for value in row.values()] for row in rows]),
        "made_ms": made_ms,
        "again_ms": again_ms,
        "again_minutes": SET * again_ms / 6e4,
        "full_ms": FULL_MS,
        "full_hours": full_hours,
        "made_hours": made_hours,
        "wall": 60 * (full_hours + made_hours) / 16,
        "taught": taught["recordings"],
        "few": first["recordings"],
        "many": last["recordings"],
        "slope": slope,
        "memory": (1e6 * last["peak MB"] + slope * (SET - last["recordings"])) / 1e9,
        "full_kb": FULL_KB,
        "disk": SET * FULL_KB / 1e6,
    }


def main(arguments: list[str]) -> None:
    """Read, and write."""
    prog = "python -m benchmarks.reliability.page"
    folder = Path(override(Settings(), arguments, prog=prog, description=__doc__).folder)
    tallies = [
        json.loads((folder / f"{name}.json").read_text()) for name in ("kills", "fuzz", "soak", "prepare")
    ]
    with whole_file(folder.with_suffix(".md"), "w") as file:
        file.write(page(*tallies))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
