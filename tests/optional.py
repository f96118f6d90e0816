"""Libraries that an installation may lack, and the reason that their tests then give for being skipped."""

import importlib.util

import pytest

needs_psds = pytest.mark.skipif(
    importlib.util.find_spec("sed_scores_eval") is None,
    reason="needs sed_scores_eval, which has to be compiled: pip install -e '.[sed]'",
)
"""For tests of PSDS and of the other metrics of timed events."""
