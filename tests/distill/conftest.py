"""Without trials in a subprocess, which take a second each and which the models of these tests don't need."""

import pytest

from qkd_jax.system import isolation


@pytest.fixture
def tried():
    """Have a test's models tried in a subprocess first, as in use."""


@pytest.fixture(autouse=True)
def _untried(monkeypatch, request):
    if "tried" not in request.fixturenames:
        monkeypatch.setattr(isolation, "try_apart", lambda module, path, *more, runtime: None)
