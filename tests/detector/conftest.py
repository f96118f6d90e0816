import pytest

from qkd_jax.detector.detector import Detector
from tests.detectors import DEEP, FRONT, PLAIN, random_detector


@pytest.fixture(params=["plain", "front", "deep"])
def detector(request) -> Detector:
    """Detectors of each form, with random codes."""
    return random_detector({"plain": PLAIN, "front": FRONT, "deep": DEEP}[request.param])
