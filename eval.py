"""Score a run's models: python eval.py RUN[/MODEL] [--split valid] [--data.root DIR] [--json FILE]"""

import json
import sys
from functools import partial
from pathlib import Path

from qkd_jax.command import override, run_command
from qkd_jax.config import EvalConfig, InputError

settings_from = partial(override, prog="eval.py RUN[/MODEL]", description=__doc__)


def main(arguments: list[str]) -> None:
    """`arguments` start with a run's folder, or that of one of its models."""
    if "--help" in arguments or "-h" in arguments:
        settings_from(EvalConfig(), ["--help"])
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"expected a run's folder first. {__doc__}")

    from qkd_jax.train.folder import load_run
    from qkd_jax.train.score import score_run

    folder, only = Path(arguments[0]), None
    if not (folder / "config.json").is_file() and (folder.parent / "config.json").is_file():
        folder, only = folder.parent, folder.name
    run = load_run(folder)
    settings = settings_from(EvalConfig(data=run.config.data), arguments[1:])
    results = score_run(run, only=only, data=settings.data, split=settings.split)
    if settings.json:
        Path(settings.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
