"""What functions of one array are called through in other JAX code."""

import jax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def shard(f):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data")))


def scanned(f):
    return lambda x: jax.lax.scan(lambda carry, row: (carry, f(row)), None, x)[1]


@pytest.fixture(params=[jax.jit, jax.vmap, scanned, jax.checkpoint, shard])
def transform(request):
    """A transformation of functions of x [4, ...], row by row or as a whole."""
    return request.param
