"""Errors that a person sees: an InputError whose message names the place and the fault."""

import contextlib
import re

import pytest

from qkd_jax.errors import InputError

SPLIT_WORDS = "train (or training), valid (or validation, val, dev), test (or testing, eval, evaluation)"


def refused(message):
    """Expect an InputError that matches `message`."""
    return pytest.raises(InputError, match=message)


def refused_exactly(message):
    """Expect an InputError of this message and no other words."""
    return refused(rf"\A{re.escape(message)}\Z")


@contextlib.contextmanager
def refused_in_one_line(message):
    with refused(message) as caught:
        yield
    assert "\n" not in str(caught.value)
