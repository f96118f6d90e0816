import pytest

from tests.detectors import FORMS, random_detector


@pytest.fixture(params=FORMS)
def detector(request):
    """Detectors of each form, with random codes."""
    return random_detector(FORMS[request.param])
