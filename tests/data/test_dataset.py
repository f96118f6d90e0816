import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qkd_jax.config import DataConfig, FeatureConfig, RunConfig
from qkd_jax.data.clips import Clip
from qkd_jax.data.dataset import check_split, load_split
from qkd_jax.data.features import recording_features
from qkd_jax.errors import InputError

CONFIG = RunConfig(
    features=FeatureConfig(n_mels=16),
    data=DataConfig(root="recordings", clip_seconds=0.5, events=("bell", "knock")),
)


def clip(name, labels, split, folder=Path()):
    return Clip(name=name, root=folder, labels=frozenset(labels), group=name, split=split)


def test_a_split_keeps_order_names_targets_and_features(tmp_path):
    labels = [{"bell"}, set(), {"knock", "tone"}, {"bell", "knock"}, {"tone"}]
    clips = [clip(f"{4 - index}.wav", held, "train", tmp_path) for index, held in enumerate(labels)]
    for index, item in enumerate(clips):
        samples = np.random.default_rng(index).normal(0, 0.1, 8000 + 160 * index)
        soundfile.write(item.path, samples, 16_000)
    others = [clip("gone.wav", {"bell"}, "test"), clip("gone too.wav", {"knock"}, "valid")]
    data = load_split(CONFIG, [others[0], *clips, others[1]], "train", tmp_path / "cache")
    assert data.names == ["4.wav", "3.wav", "2.wav", "1.wav", "0.wav"]
    assert data.events == ("bell", "knock")
    np.testing.assert_array_equal(data.targets, [[1, 0], [0, 0], [0, 1], [1, 1], [0, 0]])
    for item, features in zip(clips, data.features):
        np.testing.assert_array_equal(features, recording_features(item.path, CONFIG.features))
    clips[2].path.unlink()
    with pytest.raises(InputError, match=r"1 of 5 recordings can't be used:\n.*2\.wav: not there"):
        load_split(CONFIG, clips, "train", tmp_path / "cache")


def test_unlabelled_clips_are_no_part_of_a_split(tmp_path):
    labels = [{"bell"}, set(), {"knock"}]
    clips = [clip(f"{index}.wav", held, "train", tmp_path) for index, held in enumerate(labels)]
    for index, item in enumerate(clips):
        soundfile.write(item.path, np.random.default_rng(index).normal(0, 0.1, 8000), 16_000)
    other = dataclasses.replace(clip("gone.wav", set(), "train"), labelled=False)
    data = load_split(CONFIG, [clips[0], other, *clips[1:]], "train", tmp_path / "cache")
    assert data.names == ["0.wav", "1.wav", "2.wav"] and len(data.features) == 3
    np.testing.assert_array_equal(data.targets, [[1, 0], [0, 0], [0, 1]])


def test_a_split_needs_clips():
    with pytest.raises(InputError, match=r"recordings: expected clips of split 'test', found none"):
        check_split(CONFIG.data, [clip("a", {"bell"}, "train")], "test")
    unlabelled = dataclasses.replace(clip("a", set(), "test"), labelled=False)
    with pytest.raises(InputError, match=r"expected labelled clips of split 'test', found none"):
        check_split(CONFIG.data, [unlabelled], "test")


@pytest.mark.parametrize(
    ("labels", "found"), [({"bell"}, "0 positive of 2"), ({"bell", "knock"}, "2 positive of 2")]
)
def test_an_event_needs_positive_and_negative_clips(labels, found):
    clips = [clip("a", labels, "train"), clip("b", labels - {"bell"}, "train"), clip("c", {"knock"}, "test")]
    with pytest.raises(InputError, match=f"event 'knock': expected positive and negative clips.*{found}"):
        check_split(CONFIG.data, clips, "train")
    # An unlabelled clip is no negative.
    clips.append(dataclasses.replace(clip("d", set(), "train"), labelled=False))
    with pytest.raises(InputError, match=f"event 'knock': expected positive and negative clips.*{found}"):
        check_split(CONFIG.data, clips, "train")
