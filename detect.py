"""`qkd-jax detect`, in a clone that is not installed."""

import sys

from qkd_jax.commands.cli import run

if __name__ == "__main__":
    sys.exit(run("detect", sys.argv[1:], "detect.py"))
