"""The README's code runs, and its table of functions is complete."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_trains():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names = {}
    exec(code, names)
    x = jax.random.normal(jax.random.key(2), (8, 20, 40))
    y = jnp.tile(jnp.array([[0.0, 1.0, 1.0]]), (8, 1))
    params, opt_state = names["params"], names["optimizer"].init(names["params"])
    values = []
    for _ in range(30):
        params, opt_state, value = names["train_step"](params, opt_state, x, y)
        values.append(float(value))
    assert values[-1] < 0.95 * values[0]
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), params, names["params"])
    assert min(jax.tree.leaves(moved)) > 0


def test_its_functions_are_the_public_ones():
    import qkd_jax

    table = README[README.index("| function | does |") :].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:])))
    assert named == set(qkd_jax.__all__) - {"QuantConfig", "FeatureConfig"}
