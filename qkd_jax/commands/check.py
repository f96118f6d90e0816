"""Show what PRESET would read, before it trains: the arguments of `train`, and --html FILE for the page.

Prints recordings, hours and events of each split, and warns of what would spoil a run: the same sound in two
splits, lengths that give an event away, clipped recordings, files that no table names.  The page has pictures
of each event; it is RUNS/NAME-check.html unless --html names another file.  Nothing else is written.  The
exit status is 0 if the run could start, and 2 if not.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qkd_jax.commands.cli import docstring
from qkd_jax.commands.override import take
from qkd_jax.commands.train import config_of
from qkd_jax.config import AnyData, DemoData, FoldData, RunConfig, with_data
from qkd_jax.errors import InputError, noted, printable

if TYPE_CHECKING:
    from qkd_jax.data.clips import Clip
    from qkd_jax.data.measure import Measured

Rows = list[tuple[str, list[str]]]
_MOST_ROWS, _MOST_KINDS = 30, 6
"""Rows of the table that is printed (the page has all), and kinds of a fact that are named."""


def main(arguments: list[str], prog: str) -> None:
    """Check the preset, a name or a file, that `arguments` start with; by default demo."""
    html, settings = take("--html", arguments)
    if len(html) > 1:
        raise InputError(f"--html: expected one file, got {' '.join(html)}")
    check(config_of(settings, prog, docstring(__file__)), Path(*html) if html else None)


def check(config: RunConfig, html: Path | None = None) -> None:
    """Print what a run of `config` would read, and write the page.

    Raises InputError as the run would; if there are usable recordings, after everything is printed.
    """
    # Imported here, since JAX takes seconds and --help needs none of it.
    from qkd_jax.data.check import Finding, Item, all_findings
    from qkd_jax.data.clip_list import faults, listed_clips, read_clips, without
    from qkd_jax.data.clips import SPLITS, Clip
    from qkd_jax.data.dataset import check_times
    from qkd_jax.data.measure import Measured, measure_all
    from qkd_jax.data.parts import length_of, rows_of
    from qkd_jax.data.prepare import prepared
    from qkd_jax.evaluation.check_page import write_check_page
    from qkd_jax.system.progress import track
    from qkd_jax.training.events import check_longest
    from qkd_jax.training.run import check_config, recipe_of

    check_config(config)
    if isinstance(config.data, DemoData):  # it makes its recordings where the run will find them
        config = with_data(config, root=str(Path(config.runs, config.name, "data").absolute()))
    listed, features = listed_clips(config.data), config.features
    clips = read_clips(config.data, listed)
    measured: dict[Path, Measured] = {}

    def frames_of(path: Path) -> int:
        return features.frames(round(measured[path].seconds * features.sample_rate))

    def read(named: list[Clip]) -> tuple[dict[str, str], Callable[[int], tuple[int, bool]]]:
        paths = list(dict.fromkeys(clip.path for clip in named))
        found = measure_all(paths, features, config.data.channel)
        measured.update(zip(paths, track(found, len(paths), "reading")))
        unread = {clip.name: fault for clip in named if (fault := measured[clip.path].fault)}
        return unread, lambda place: (frames_of(named[place].path), measured[named[place].path].silent)

    errors: list[InputError] = []
    bad = faults(clips, config.data, features, read)
    usable = without(bad, clips, config.data, errors)
    rule = _split_rule(config.data, usable)
    config, usable = prepared(config, usable, {clip.name: frames_of(clip.path) for clip in usable}, errors)
    events, found = config.data.events, [measured[clip.path] for clip in usable]
    for split in SPLITS if config.timed else ():
        of_split = [clip for clip in usable if clip.split == split]
        seconds = [length_of(clip, frames_of(clip.path), features) for clip in of_split]
        with noted(errors):
            check_times(config.data, of_split, seconds, split)
    with noted(errors):
        recipe_of(config).check_clips(config, usable)
    if config.timed:
        training = (clip for clip in usable if clip.split == "train")
        rows = (range(frames_of(clip.path))[rows_of(clip, features)] for clip in training)
        with noted(errors):
            check_longest(config, max(map(len, rows), default=0))

    table, facts = _table(usable, found, events), {"splits": rule, **_facts(config, usable, found)}
    _print_table(table, facts)
    findings = all_findings(config, usable, found, listed)
    items = tuple(Item((name,), fault) for name, fault in bad.items())
    unusable = [Finding(1, "recordings that can't be used", items)] if bad else []
    # Unless they are skipped, the error lists them.
    for finding in [*(unusable if config.data.skip_bad else ()), *findings]:
        print(f"warning: {finding}")
    page = html or Path(config.runs) / f"{config.name}-check.html"
    write_check_page(
        page,
        config,
        clips=usable,
        found=found,
        findings=[*unusable, *findings],
        errors=[str(error) for error in errors],
        table=table,
        facts=facts,
    )
    print(f"Page: {page}", flush=True)
    if errors:
        raise errors[0]


def _split_rule(data: AnyData, clips: "Sequence[Clip]") -> str:
    if isinstance(data, FoldData) and data.folds:
        return f"fold {data.folds[0]} for the test, the one before it for validation"
    if all(clip.split is not None for clip in clips):
        return "as the table says"
    rule = "70/10/20, with each event in these shares"
    return f"{rule}, and groups whole" if any(clip.group != clip.name for clip in clips) else rule


def _table(clips: "Sequence[Clip]", found: "Sequence[Measured]", events: Sequence[str]) -> Rows:
    """Rows of a name and four cells, recordings and hours in train, valid, test and all."""
    from qkd_jax.data.check import extent
    from qkd_jax.data.clips import KINDS, NOUNS, SPLITS

    columns: list[tuple[str | None, ...]] = [*((split,) for split in SPLITS), SPLITS]
    seconds = {id(clip): float(np.ptp(extent(clip, each))) for clip, each in zip(clips, found)}

    def row(name: str, those: "list[Clip]") -> tuple[str, list[str]]:
        of_split = [[clip for clip in those if clip.split in column] for column in columns]
        return name, [
            f"{len(some):,} ({_duration(sum((seconds[id(clip)] for clip in some), 0.0))})"
            for some in of_split
        ]

    rows = [row("recordings", list(clips))]
    kinds = {clip.kind for clip in clips}
    if kinds != {"weak"}:
        rows += [row(NOUNS[kind], [clip for clip in clips if clip.kind == kind]) for kind in KINDS]
    rows += [row(event, [clip for clip in clips if event in clip.labels]) for event in events]
    others = [clip for clip in clips if clip.labelled and clip.labels.isdisjoint(events)]
    return [*rows, row("none of the events", others)]


def _duration(seconds: float) -> str:
    """Seconds as they are read.

    >>> _duration(45.0), _duration(600.0), _duration(9000.0)
    ('45 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _facts(config: RunConfig, clips: "Sequence[Clip]", found: "Sequence[Measured]") -> dict[str, str]:
    from qkd_jax.data.check import extent

    seconds = np.array([np.ptp(extent(clip, each)) for clip, each in zip(clips, found)])
    low, middle, high = map(_duration, (seconds.min(), np.median(seconds), seconds.max()))
    lengths = low if low == high else f"{low} to {high}, median {middle}"
    same = sum(each.same_channels for each in found)
    return {
        "lengths": f"{lengths}; a clip has {config.data.clip_seconds:g} s",
        "sample rates": _counted(f"{each.rate:,} Hz" for each in found),
        "channels": _counted(str(len(each.channel_levels)) for each in found)
        + (f"; in {same:,} recordings they are all the same" if same else ""),
        "formats": _counted(each.form for each in found),
    }


def _counted(values: Iterable[str]) -> str:
    counts = Counter(values).most_common()
    more = f" and {len(counts) - _MOST_KINDS} more" if len(counts) > _MOST_KINDS else ""
    return ", ".join(f"{value} ({count:,})" for value, count in counts[:_MOST_KINDS]) + more


def _print_table(rows: Rows, facts: dict[str, str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    for column in ("train", "valid", "test", "all"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, cells in rows[:_MOST_ROWS]:
        table.add_row(escape(printable(name)), *cells)
    # Only a terminal has a width to fit.
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    if len(rows) > _MOST_ROWS:
        print(f"{len(rows) - _MOST_ROWS} more rows are on the page")
    for name, fact in facts.items():
        print(f"{name}: {fact}")
