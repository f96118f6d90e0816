"""Write a student to a file for a device: python export.py RUN/STUDENT --format onnx [--out FILE]"""

import sys
from functools import partial
from pathlib import Path

from qkd_jax.commands.cli import override, run_command
from qkd_jax.config import ExportConfig
from qkd_jax.errors import InputError

settings_from = partial(override, prog="export.py RUN/STUDENT", description=__doc__)


def main(arguments: list[str]) -> None:
    """`arguments` start with a student's folder."""
    if "--help" in arguments or "-h" in arguments:
        settings_from(ExportConfig(), ["--help"])
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"expected a student's folder first. {__doc__}")
    settings = settings_from(ExportConfig(), arguments[1:])

    from qkd_jax.commands.export import export
    from qkd_jax.run_folder.folder import load_run

    folder = Path(arguments[0])
    out = Path(settings.out) if settings.out else None
    export(load_run(folder.parent), folder.name, settings.format, out)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
