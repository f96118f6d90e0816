"""Pictures and annotations of the recordings on the page of a check."""

from dataclasses import replace

import numpy as np
import pytest

from qkd_jax.config import FeatureConfig, RunConfig, TimedData
from qkd_jax.data.check import in_samples
from qkd_jax.data.clips import UNLABELLED, Annotation
from qkd_jax.data.measure import measure
from qkd_jax.evaluation.check_page import _card, write_check_page
from tests.recordings import noise, record

FEATURES = FeatureConfig(n_mels=8)


def card_of(clip, channel=None):
    config = RunConfig(features=FEATURES, data=TimedData(root="r", clip_seconds=1.0, channel=channel))
    return _card(config, clip, measure(clip.path, FEATURES), 1.0)


def test_a_part_has_its_events_and_its_link(tmp_path):
    whole = record(tmp_path, "a.wav", noise(48_000))
    dog = (Annotation("dog", 0.25, 0.75),)
    part = replace(whole, name="a.wav#t=2,3", file="a.wav", part=(2.0, 3.0), annotations=dog)
    card = card_of(part)
    assert card["bars"] == [("dog", 25, pytest.approx(50))]
    assert card["uri"] == f"{whole.path.as_uri()}#t=2,3"
    card = card_of(replace(whole, annotations=(Annotation("dog", 0.5, 9.0), Annotation("dog", 1.5, 2.0))))
    assert card["bars"] == [("dog", 50, pytest.approx(50))] and card["uri"] == whole.path.as_uri()


def test_a_picture_is_that_of_the_channel_that_is_read(tmp_path):
    both = np.stack([noise(16_000, 0), np.sin(np.arange(16_000)).astype(np.float32)], 1)
    stereo = record(tmp_path, "stereo.wav", both)
    alone = record(tmp_path, "alone.wav", both[:, 1])
    assert card_of(stereo, channel=2)["picture"] == card_of(alone)["picture"]
    assert card_of(stereo)["picture"] != card_of(alone)["picture"]


def test_findings_lead_to_recordings_wherever_they_are(tmp_path):
    whole = record(tmp_path, "a.wav", np.zeros(32_000))
    parts = [
        replace(whole, name=f"{UNLABELLED}a.wav#t={part[0]:g},{part[1]:g}", file="a.wav", part=part)
        for part in ((0.0, 1.0), (1.0, 2.0))
    ]
    found = [measure(whole.path, FEATURES)] * 2
    config = RunConfig(features=FEATURES, data=TimedData(root="elsewhere", clip_seconds=1.0))
    findings = list(in_samples(parts, found))
    assert [str(finding) for finding in findings] == ["silent (1):\n  unlabelled:a.wav"]
    page = tmp_path / "page.html"
    write_check_page(page, config, clips=parts, found=found, findings=findings, errors=(), table=(), facts={})
    assert f'href="{whole.path.as_uri()}"><bdi>unlabelled:a.wav</bdi>' in page.read_text()
