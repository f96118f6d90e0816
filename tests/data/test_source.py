import dataclasses
from pathlib import Path

import pytest

from qkd_jax.config import Config, DataConfig, FeatureConfig, InputError
from qkd_jax.data.clips import Clip
from qkd_jax.data.source import load_split, read_clips

CONFIG = Config(
    features=FeatureConfig(n_mels=16),
    data=DataConfig(root="recordings", source="demo", clip_seconds=0.5, events=("bell", "knock")),
)


def clip(name, labels, split):
    return Clip(name=name, path=Path(name), labels=frozenset(labels), group=name, split=split)


def test_the_demo_is_made_and_read_like_any_recordings(tmp_path):
    data = dataclasses.replace(CONFIG.data, root=str(tmp_path / "demo"), demo_clips=(12, 1, 2))
    clips = read_clips(data, CONFIG.features)
    assert [clip.split for clip in clips] == ["train"] * 12 + ["valid"] + ["test"] * 2
    config = dataclasses.replace(CONFIG, data=data)
    train = load_split(config, clips, "train")
    assert train.names == [clip.name for clip in clips[:12]]
    assert {len(features) for features in train.features} == {config.frames}


def test_a_split_needs_clips():
    with pytest.raises(InputError, match=r"recordings/metadata\.csv: expected clips of split 'test'"):
        load_split(CONFIG, [clip("a", {"bell"}, "train")], "test")


@pytest.mark.parametrize(
    ("labels", "found"), [({"bell"}, "0 positive of 2"), ({"bell", "knock"}, "2 positive of 2")]
)
def test_an_event_needs_positive_and_negative_clips(labels, found):
    clips = [clip("a", labels, "train"), clip("b", labels - {"bell"}, "train"), clip("c", {"knock"}, "test")]
    with pytest.raises(InputError, match=f"event 'knock': expected positive and negative clips.*{found}"):
        load_split(CONFIG, clips, "train")
