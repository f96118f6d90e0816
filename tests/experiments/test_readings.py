"""The changes to what the paper leaves open."""

import dataclasses

from experiments.readings import CHANGES, cells
from qkd_jax.config import RunConfig
from qkd_jax.run_folder.folder import _flat


def settings(config: RunConfig, name: str) -> dict:
    """The settings of a run and of its model `name`, under one name for all runs."""
    flat = _flat(dataclasses.replace(config, name="run"))
    return {key.replace(f"models.{name}.", "model."): value for key, value in flat.items()}


def test_each_change_changes_the_settings_it_names_and_nothing_else():
    every = {cell.name: cell.config for cell in cells(0)}
    base, differ = settings(every["base"], "base"), {}
    for name, change in CHANGES.items():
        after = settings(every[name], name)
        differ[name] = {field for field in base | after if base.get(field) != after.get(field)}
        # The precision of 4-bit operands is four settings, and all others are one each.
        named = {field for field in change if field != "quant"}
        assert {field.split(".")[-1] for field in differ[name] if ".quant." not in field} == named, name
    parts = {f"model.network.quant.{part}" for part in ("weights", "activations", "gates", "cell")}
    assert differ["base"] == set() and differ["4-bit"] == parts
    assert differ["4-bit-split"] == parts | {"model.network.quant.ranges"}
    assert len({repr(settings(every[name], name)) for name in CHANGES}) == len(CHANGES)
