"""Trees of arrays, compared leaf by leaf."""

from functools import partial

import jax
import numpy as np


def assert_close(got, expected, **tolerances):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerances), got, expected)


def assert_equal(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)
