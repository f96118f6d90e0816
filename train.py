"""Train a teacher and its quantized students: python train.py [PRESET] [--section.field value …]"""

import sys
from pathlib import Path

from qkd_jax.config.run_sed import SedConfig

from qkd_jax.commands.cli import load_preset, override, run_command


def main(arguments: list[str]) -> None:
    """`arguments` start with a preset's name (demo by default); `--help` lists every field."""
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = load_preset(arguments[0] if named else "demo", Path(__file__).parent / "configs")
    config = override(preset, arguments[named:], prog="train.py", description=__doc__)

    if config.distributed:
        from qkd_jax.system.devices import join_processes

        join_processes()
    if isinstance(config, SedConfig):
        from qkd_jax.training.sed_run import train_sed

        train_sed(config)
    else:
        from qkd_jax.training.run import train

        train(config)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
