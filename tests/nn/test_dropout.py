"""Dropout: shares, means, independence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkd_jax.nn.dropout import dropout


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_a_share_is_dropped_and_the_mean_stays(rate, impl):
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (400, 501)), jnp.float32)
    dropped = np.asarray(dropout(jax.random.key(0, impl=impl), x, rate))
    share = min(round(256 * rate), 255) / 256
    assert (dropped == 0).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / x.size) ** 0.5)
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], np.asarray(x)[kept] / (1 - share), rtol=1e-6)
    # Neighbours share a random word, and yet are dropped independently.
    for step in (1, 2, 3, 4):
        both = (~kept.ravel()[step:] & ~kept.ravel()[:-step]).mean()
        assert both == pytest.approx(share**2, abs=0.01)


def test_the_key_decides_and_nothing_is_dropped_at_rate_0():
    x, keys = jnp.ones((3, 7)), jax.random.split(jax.random.key(1), 2)
    one, again, other = (dropout(key, x, 0.5) for key in (keys[0], keys[0], keys[1]))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    np.testing.assert_array_equal(dropout(keys[0], x, 0.0), x)
