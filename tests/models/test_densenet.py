import jax
import jax.numpy as jnp
import pytest

from qkd_jax.config import DenseNetConfig
from qkd_jax.models.build import build_model
from tests.networks import parameters


def test_densenet_121_has_the_parameters_of_torchvisions():
    # torchvision's 7,978,856 with a stem of one channel instead of three, and three events instead of 1000.
    expected = 7_978_856 - 2 * 64 * 7 * 7 - (1024 * 1000 + 1000) + (1024 * 3 + 3)
    assert parameters(DenseNetConfig(blocks=(6, 12, 24, 16)), (998, 64)) == expected == 6_950_659


def test_blocks_that_leave_nothing_are_refused():
    model = build_model(DenseNetConfig(blocks=(1, 1, 1), growth=4, stem=4), events=3)
    with pytest.raises(ValueError, match="blocks: 3 blocks halve features of 40 x 8 to nothing"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 40, 8)))
