"""Score a run's models, or an exported file: python eval.py RUN[/MODEL] or FILE [--split valid] …"""

import json
import sys
from functools import partial
from pathlib import Path

from qkd_jax.commands.cli import override, run_command
from qkd_jax.config import DataConfig, EvalConfig
from qkd_jax.errors import InputError

settings_from = partial(override, prog="eval.py RUN[/MODEL]", description=__doc__)


def main(arguments: list[str]) -> None:
    """`arguments` start with a run's folder, that of one of its models, or an exported file."""
    if "--help" in arguments or "-h" in arguments:
        settings_from(EvalConfig(), ["--help"])
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"expected a run's folder, or an exported file first. {__doc__}")

    from qkd_jax.commands.evaluate import score_run
    from qkd_jax.commands.evaluate_file import run_around, score_file
    from qkd_jax.run_folder.folder import load_run

    path, only = Path(arguments[0]), None
    if path.is_file():
        run = run_around(path)
        settings = settings_from(EvalConfig(data=run.config.data if run else DataConfig()), arguments[1:])
        results = score_file(path, run, data=settings.data, split=settings.split)
    else:
        if not (path / "config.json").is_file() and (path.parent / "config.json").is_file():
            path, only = path.parent, path.name
        run = load_run(path)
        settings = settings_from(EvalConfig(data=run.config.data), arguments[1:])
        results = score_run(run, only=only, data=settings.data, split=settings.split)
    if settings.json:
        Path(settings.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
