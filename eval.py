"""Score a run's models: python eval.py RUN[/STUDENT] [--split test] [--data.root DIR]"""

import sys
from pathlib import Path

from pydantic.dataclasses import dataclass

from qkd_jax.config import DataConfig, InputError, override, run_command


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to score the run on."""

    split: str = "test"
    """train, valid or test."""
    data: DataConfig
    """Other recordings of the same layout; the run's own by default."""


def main(arguments: list[str]) -> None:
    """`arguments` start with a run's folder, or that of one of its models."""
    if not arguments or arguments[0].startswith("-"):
        raise InputError("expected a run's folder: python eval.py RUN[/STUDENT] [--section.field value]")

    from qkd_jax.train.folder import load_run
    from qkd_jax.train.score import score_run

    folder, only = Path(arguments[0]), None
    if not (folder / "config.json").is_file() and (folder.parent / "config.json").is_file():
        folder, only = folder.parent, folder.name
    run = load_run(folder)
    default = Settings(data=run.config.data)
    settings = override(default, arguments[1:], prog="eval.py", description=__doc__)
    score_run(run, only=only, data=settings.data, split=settings.split)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
