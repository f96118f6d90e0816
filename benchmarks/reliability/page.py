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


def parts(folder: Path) -> dict[str, str]:
    """The marked parts of the page, from the tallies in `folder`."""
    tallies = {name: json.loads((folder / f"{name}.json").read_text()) for name in MAKERS}
    where = {name: f"{tally['machine']}; {tally['versions']}" for name, tally in tallies.items()}
    return {name: make(tallies[name], where[name]) for name, make in MAKERS.items()}


def kills(tally: Any, where: str) -> str:
    """How often a run was killed in each phase."""
    counts = tally["kills"]
    rows = [[name, str(count)] for name, count in counts.items()]
    return f"""{sum(counts.values())} SIGKILLs in {tally["runs"]} runs, each of which ended bit-identical to
an undisturbed run of {tally["seconds"]:.0f} s, in all {tally["compared"]} arrays and files ({where};
seed {tally["seed"]}):

{markdown(["killed at", "times"], rows)}"""


def fuzz(tally: Any, where: str) -> str:
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
    return f"""Each of {len(targets)} readers was given {inputs:,} damaged files ({where}):

{markdown(header, rows)}"""


def soak(tally: Any, where: str) -> str:
    """The figures of each runtime."""
    return f"{tally['hours']:.0f} hours ({where}):\n\n{soak_table(tally)}"


def prepare(tally: Any, where: str) -> str:
    """The figures of each count."""
    return f"{tally['processes']} processes ({where}):\n\n{prepare_table(tally['rows'])}"


MAKERS = {"kills": kills, "fuzz": fuzz, "soak": soak, "prepare": prepare}


def main(arguments: list[str]) -> None:
    """Fill the page; there are no arguments."""
    fill(RESULTS / "reliability.md", parts(RESULTS / "reliability"))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
