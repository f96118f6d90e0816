"""Score a run's models: python eval.py RUN[/MODEL] [--split valid] [--data.root DIR]"""

import sys
from pathlib import Path

from qkd_jax.config import EvalConfig, InputError, override, run_command


def main(arguments: list[str]) -> None:
    """`arguments` start with a run's folder, or that of one of its models."""
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"expected a run's folder first. {__doc__}")

    from qkd_jax.train.folder import load_run
    from qkd_jax.train.score import score_run

    folder, only = Path(arguments[0]), None
    if not (folder / "config.json").is_file() and (folder.parent / "config.json").is_file():
        folder, only = folder.parent, folder.name
    run = load_run(folder)
    default = EvalConfig(data=run.config.data)
    settings = override(default, arguments[1:], prog="eval.py", description=__doc__)
    score_run(run, only=only, data=settings.data, split=settings.split)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
