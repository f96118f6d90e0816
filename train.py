"""`qkd-jax train`, in a clone that is not installed."""

import sys

from qkd_jax.commands.cli import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:], "train.py"))
