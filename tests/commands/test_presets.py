"""The list of presets."""

import pytest

from qkd_jax.commands.cli import preset_paths
from qkd_jax.commands.presets import main
from qkd_jax.errors import InputError


def test_each_preset_has_a_line(capsys):
    main([], "qkd-jax presets")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(preset_paths())
    for line, path in zip(lines, preset_paths().values(), strict=True):
        assert path.read_text().startswith(f'"""{line.split(maxsplit=1)[1]}') and len(line) <= 125


def test_it_has_a_help_and_takes_no_arguments(capsys):
    main(["--help"], "qkd-jax presets")
    assert capsys.readouterr().out.startswith("usage: qkd-jax presets\n")
    with pytest.raises(InputError, match="qkd-jax presets: expected no arguments, got demo"):
        main(["demo"], "qkd-jax presets")
