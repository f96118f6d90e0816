"""Heads: against NumPy in float64, and the events that keep what the tagger gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from qkd_jax.config import HeadConfig
from qkd_jax.models.build import build_model

EVENTS, SIZE = 3, 5


def variables_of(rng, hidden, fitted, gain):
    width = hidden or SIZE
    params = {"w": rng.normal(size=(width, EVENTS)), "b": rng.normal(size=EVENTS)}
    if hidden:
        params |= {"hidden_w": rng.normal(size=(SIZE, hidden)), "hidden_b": rng.normal(size=hidden)}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    chosen = {"events": jnp.asarray(fitted), "gain": jnp.asarray(gain, jnp.float32), "penalty": jnp.zeros(())}
    return {"params": params, "fitted": chosen}


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 4]), st.lists(st.booleans(), min_size=3, max_size=3))
def test_fitted_events_add_to_the_zero_shot_logits_and_others_keep_them(seed, hidden, fitted):
    rng = np.random.default_rng(seed)
    gain, inputs = (
        rng.uniform(0.1, 1, EVENTS),
        jnp.asarray(rng.normal(size=(2, 7, EVENTS + SIZE)), jnp.float32),
    )
    variables = variables_of(rng, hidden, fitted, gain)
    model = build_model(HeadConfig(taggers=("x.toml",), hidden_size=hidden), EVENTS)
    result = model.apply(variables, inputs, method="step_logits")
    params = {name: np.asarray(value, np.float64) for name, value in variables["params"].items()}
    zero_shot, x = np.split(np.asarray(inputs, np.float64), [EVENTS], axis=-1)
    if hidden:
        x = np.tanh(x @ params["hidden_w"] + params["hidden_b"])
    expected = np.where(fitted, gain * zero_shot + x @ params["w"] + params["b"], zero_shot)
    assert_allclose(result.steps, expected, rtol=1e-4, atol=1e-5)
    kept = ~np.array(fitted)
    assert_array_equal(np.asarray(result.steps)[..., kept], zero_shot[..., kept])
    assert_array_equal(result.clip, np.max(result.steps, axis=1))
    assert_array_equal(model.apply(variables, inputs), result.clip)


@pytest.mark.parametrize("hidden", [0, 4])
def test_a_new_head_gives_the_zero_shot_logits(hidden):
    model = build_model(HeadConfig(taggers=("x.toml",), hidden_size=hidden), EVENTS)
    inputs = jax.random.normal(jax.random.key(1), (2, 7, EVENTS + SIZE))
    variables = model.init(jax.random.key(0), inputs)
    assert_array_equal(model.apply(variables, inputs), inputs[..., :EVENTS].max(axis=1))
