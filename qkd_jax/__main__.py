"""`python -m qkd_jax COMMAND …` is `qkd-jax COMMAND …`."""

import sys

from qkd_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m qkd_jax"))
