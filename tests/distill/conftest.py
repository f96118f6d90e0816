"""Models that these tests make don't crash: they are opened at once, which saves a second each."""

import pytest

from qkd_jax.system import isolation as trial


@pytest.fixture
def tried():
    """Makes a test's models be tried in a process of their own, as all are."""


@pytest.fixture(autouse=True)
def _untried(monkeypatch, request):
    if "tried" not in request.fixturenames:
        monkeypatch.setattr(trial, "try_apart", lambda module, path, *more, runtime: None)
