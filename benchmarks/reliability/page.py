"""Fill the marked parts of docs/results/reliability.md from the tallies of the commands beside this one.

python -m benchmarks.reliability.page
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, fill, markdown
from benchmarks.reliability.fuzz import FINE
from benchmarks.reliability.prepare import table as prepare_table
from benchmarks.reliability.soak import table as soak_table
from qkd_jax.commands.cli import run_command
from qkd_jax.errors import InputError

SET = 2_000_000
"""Recordings in AudioSet."""
FULL_MS, FULL_KB = 4.8, 255.6
"""For a recording of 10 s: CPU time for its features at most (two cores take 7.23 s for 3,000, see
docs/results/speed/cpu/files.json), and their size."""


def parts(folder: Path) -> dict[str, str]:
    """The marked parts of the page, from the tallies in `folder`."""
    makers = {"kills": kills, "fuzz": fuzz, "soak": soak, "prepare": prepare}
    return {name: make(json.loads((folder / f"{name}.json").read_text())) for name, make in makers.items()}


def _where(tally: Any) -> str:
    return f"{tally['machine']}; {tally['versions']}"


def kills(tally: Any) -> str:
    """How often a run was killed in each phase."""
    counts = tally["kills"]
    rows = [[name, str(count)] for name, count in counts.items()]
    return f"""{sum(counts.values())} SIGKILLs in {tally["runs"]} runs, each of which ended bit-identical to
an undisturbed run of {tally["seconds"]:.0f} s, in all {tally["compared"]} arrays and files ({_where(tally)};
seed {tally["seed"]}):

{markdown(["killed at", "times"], rows)}"""


def fuzz(tally: Any) -> str:
    """How each reader ended; raises InputError if one ended in a fault."""
    targets = tally["targets"]
    if odd := {name: of["ends"] for name, of in targets.items() if set(of["ends"]).difference(FINE)}:
        raise InputError(f"fuzz.json: expected each input to be read or refused, found {odd}")
    rows = [
        [name, *(f"{of['ends'].get(end, 0):,}" for end in FINE), f"{of['slowest']:.2f}", str(of["peak_mb"])]
        for name, of in targets.items()
    ]
    header = ["reader of", "read", "refused", "crashes caught", "slowest, s", "memory, MB"]
    inputs = min(of["inputs"] for of in targets.values())
    return f"""Each of {len(targets)} readers was given {inputs:,} damaged files ({_where(tally)}):

{markdown(header, rows)}"""


def soak(tally: Any) -> str:
    """The figures of each runtime."""
    return f"{tally['hours']:.0f} hours ({_where(tally)}):\n\n{soak_table(tally)}"


def prepare(tally: Any) -> str:
    """The figures of each count, and an estimate for two million recordings."""
    rows = tally["rows"]
    first, last = rows[0], rows[-1]
    tagged = [row for row in rows if row["asked of a tagger"]][-1]
    made_ms = 1e3 * tagged["CPU seconds"] / tagged["made"]
    again_ms = 1e3 * tagged["CPU seconds again"] / tagged["recordings"]
    slope = 1e6 * (last["peak MB"] - first["peak MB"]) / (last["recordings"] - first["recordings"])
    full_hours, made_hours = (SET * ms / 3.6e6 for ms in (FULL_MS, made_ms))
    memory = (1e6 * last["peak MB"] + slope * (SET - last["recordings"])) / 1e9
    return f"""{tally["processes"]} processes ({_where(tally)}):

{prepare_table(rows)}

**Time.** With {tagged["recordings"]:,} recordings, making an entry costs {made_ms:.2f} ms of CPU time,
reading and writing included, and looking at a recording again {again_ms:.2f} ms for all looks of a run
together. For {SET:,} recordings of 10 s, features take at most {FULL_MS} ms each:
{SET:,} × {FULL_MS} ms = {full_hours:.1f} hours on one core; a tagger's entries add
{SET:,} × {made_ms:.2f} ms = {made_hours:.1f} hours, besides its own arithmetic; on 16 cores,
{60 * (full_hours + made_hours) / 16:.0f} minutes. Resuming a prepared run:
{SET:,} × {again_ms:.2f} ms = {SET * again_ms / 6e4:.0f} minutes on one core.

**Memory.** From {first["recordings"]:,} to {last["recordings"]:,} recordings the peak of a process grew by
{slope:.0f} bytes per recording: names, labels and splits, which dividing them needs at once. {SET:,} take
{memory:.1f} GB; features are memory-mapped and take none.

**Disk.** {SET:,} × {FULL_KB} kB = {SET * FULL_KB / 1e6:.0f} GB of features with 64 bands."""


def main(arguments: list[str]) -> None:
    """Fill the page; there are no arguments."""
    if arguments:
        raise InputError(f"expected no arguments, got {' '.join(arguments)}")
    fill(RESULTS / "reliability.md", parts(RESULTS / "reliability"))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
