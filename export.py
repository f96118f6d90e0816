"""`qkd-jax export`, in a clone that is not installed."""

import sys

from qkd_jax.commands.cli import run

if __name__ == "__main__":
    sys.exit(run("export", sys.argv[1:], "export.py"))
