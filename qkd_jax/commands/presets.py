"""`qkd-jax presets`: the presets, each with the first line of its docstring."""

import ast

from qkd_jax.commands.cli import preset_paths
from qkd_jax.errors import InputError


def main(arguments: list[str], prog: str) -> None:
    """Print each preset's name and what it is for; there are no arguments."""
    if set(arguments) & {"-h", "--help"}:
        print(f"usage: {prog}\n\nList the presets of `train`, one per line.")
        return
    if arguments:
        raise InputError(f"{prog}: expected no arguments, got {' '.join(arguments)}")
    paths = preset_paths()
    width = max(map(len, paths))
    for name, path in paths.items():
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        print(f"{name:{width}}  {docstring.partition(chr(10))[0]}")
