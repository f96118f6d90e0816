import pytest

from tests.oracles import jitted, mapped, remat, scanned, sharded


@pytest.fixture(params=[jitted, mapped, scanned, remat, sharded])
def transform(request):
    """A transformation of functions of x [4, ...], row by row or as a whole."""
    return request.param
