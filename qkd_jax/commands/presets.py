"""List the presets that `train` accepts, one per line."""

from qkd_jax.commands.cli import docstring, preset_paths
from qkd_jax.errors import InputError


def main(arguments: list[str], prog: str) -> None:
    """Print each preset's name and the first line of its docstring; there are no arguments."""
    if set(arguments) & {"-h", "--help"}:
        print(f"usage: {prog}\n\n{docstring(__file__)}")
        return
    if arguments:
        raise InputError(f"{prog}: expected no arguments, got {' '.join(arguments)}")
    paths = preset_paths()
    width = max(map(len, paths))
    for name, path in paths.items():
        print(f"{name:{width}}  {docstring(path).partition(chr(10))[0]}")
