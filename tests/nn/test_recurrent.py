"""Invariants of the LSTM and of the GRU: it does not matter how a sequence is run."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.nn.lstm import lstm_zeros
from tests.nn import test_gru as gru
from tests.nn import test_lstm as lstm
from tests.nn.cells import BATCH, CHANNEL4, FLOAT, HIDDEN, PAPER8, sequence
from tests.trees import assert_close, assert_equal

Family = namedtuple("Family", "scan step parameters carry zeros h coarse")
PARAMS = lstm.parameters()
FAMILIES = {
    "lstm": Family(
        lstm.fast_scan,
        lstm.fast_step,
        lambda seed=0: lstm.parameters(seed=seed),
        lambda batch: lstm.a_carry(PARAMS, batch),
        lambda batch: lstm_zeros(PARAMS, (batch,)),
        lambda carry: carry[-1].h,
        lstm.SPLIT4,
    ),
    "gru": Family(
        gru.fast_scan,
        gru.fast_step,
        gru.parameters,
        gru.a_carry,
        lambda batch: jnp.zeros((batch, HIDDEN)),
        lambda carry: carry,
        CHANNEL4,
    ),
}


families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
quants = pytest.mark.parametrize(
    ("family", "quant"),
    [(family, quant) for family in FAMILIES.values() for quant in (FLOAT, PAPER8, family.coarse)],
    ids=[f"{name}, {bits}" for name in FAMILIES for bits in ("float", "8 bits", "4 bits")],
)


@quants
def test_scan_is_the_loop_of_steps(family, quant):
    params, x, carry = family.parameters(), sequence(*BATCH), family.carry(4)
    outputs, last = family.scan(params, x, quant=quant, carry=carry)
    for t in range(x.shape[1]):
        carry = family.step(params, carry, x[:, t], quant=quant)
        np.testing.assert_allclose(outputs[:, t], family.h(carry), rtol=0, atol=1e-5)
    assert_close(last, carry, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(family.h(last), outputs[:, -1])


@quants
def test_other_clips_of_a_batch_change_no_bit(family, quant):
    params, x, carry = family.parameters(), sequence(*BATCH), family.carry(4)
    expected = family.scan(params, x, quant=quant, carry=carry)
    for other in (np.nan, np.inf, 1e30, 0.0):
        got = family.scan(params, x.at[1, 2:].set(other), quant=quant, carry=carry)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a[::2], b[::2])
        assert not np.array_equal(got[0][1], expected[0][1])
        # Later inputs change no earlier output.
        np.testing.assert_array_equal(got[0][1, :2], expected[0][1, :2])


@families
def test_the_default_carry_is_zeros(family):
    params, x, zeros = family.parameters(), sequence(*BATCH), family.zeros(4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zeros))
    assert_equal(*(family.step(params, carry, x[:, 0]) for carry in (None, zeros)))
    default, from_zeros = family.scan(params, x)[0], family.scan(params, x, carry=zeros)[0]
    np.testing.assert_allclose(default, from_zeros, rtol=0, atol=1e-6)
    assert np.abs(default - family.scan(params, x, carry=family.carry(4))[0]).max() > 0.1


@families
@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_any_leading_axes_are_a_batch(family, batch):
    params, x = family.parameters(), sequence(*BATCH)
    flat = family.scan(params, x)[0]
    outputs, carry = family.scan(params, x.reshape(2, 2, *x.shape[1:]) if batch else x[0])
    assert outputs.shape == (*batch, 6, HIDDEN)
    np.testing.assert_allclose(outputs, flat.reshape(outputs.shape) if batch else flat[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(family.h(carry), outputs[..., -1, :])


@families
def test_vmap_over_parameters(family):
    params, x = [family.parameters(seed=seed) for seed in (0, 1)], sequence(*BATCH)
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), *params)
    outputs = jax.vmap(lambda params: family.scan(params, x, quant=PAPER8)[0])(stacked)
    for got, alone in zip(outputs, params, strict=True):
        np.testing.assert_allclose(got, family.scan(alone, x, quant=PAPER8)[0], rtol=0, atol=1e-5)
