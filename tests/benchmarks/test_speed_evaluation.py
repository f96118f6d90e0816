"""Tables of a student and of YAMNet: of every clip, of the same labels, each time from nothing."""

import numpy as np
import pytest

from benchmarks import runtimes
from benchmarks.speed import evaluation, files
from benchmarks.speed.evaluation import EVENTS, by_tagger, check, labelled, rows, yamnet
from qkd_jax.config import LSTMConfig, QuantConfig
from qkd_jax.data.clip_list import read_clips
from qkd_jax.data.clips import targets
from qkd_jax.errors import InputError

TINY = LSTMConfig(hidden_size=4, pooling="mean", quant=QuantConfig.integer(4))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Clips of a second."""
    monkeypatch.setattr(files, "CLIP_SECONDS", 1)
    monkeypatch.setattr(runtimes, "SECONDS", 1)


def table(clips=4, **changes):
    metrics = {event: {"auc": 50.0, "eer": 50.0} for event in (*EVENTS, "average")} | changes
    return {"clips": clips, "models": {"some": {"metrics": metrics}}}


def test_labels(tmp_path):
    clips = read_clips(labelled(tmp_path, 5))
    np.testing.assert_array_equal(
        targets(clips, EVENTS), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    )
    assert all(clip.path.is_file() for clip in clips)


@pytest.mark.parametrize(
    "wrong", [table(clips=3), table(dog={"auc": np.nan, "eer": 1.0}), table(gunshot={"auc": 50.0})]
)
def test_tables_that_lack_something_are_refused(wrong):
    check(table(), 4)
    with pytest.raises(InputError, match="figures of dog, baby_cry, gunshot on 4 clips"):
        check(wrong, 4)


def test_the_tagger_is_judged_by_the_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = labelled(tmp_path, 8)
    tagger = tmp_path / "yamnet.toml"
    (tmp_path / evaluation.MODEL).write_bytes(b"1234567")

    def logits(path, clips, events, cache):
        assert (path, events, cache.exists()) == (tagger, EVENTS, False)
        right = targets(clips, events)
        return np.stack([right[:, 0], -right[:, 1], 0 * right[:, 2]], axis=1)

    monkeypatch.setattr(evaluation, "tagger_logits", logits)
    found = by_tagger(tagger, data)
    check(found, 8)
    assert found["models"]["yamnet"]["bytes"] == 7
    metrics = found["models"]["yamnet"]["metrics"]
    assert [metrics[event]["auc"] for event in EVENTS] == [100, 0, 50]
    assert [metrics[event]["eer"] for event in EVENTS] == [0, 100, 50]


@pytest.fixture
def tables(monkeypatch):
    """Those that `rows` makes."""
    made = []
    monkeypatch.setattr(evaluation, "check", lambda found, count: (made.append(found), check(found, count)))
    return made


def test_row_without_yamnet(tmp_path, monkeypatch, tables, capsys):
    monkeypatch.setattr(evaluation, "SHARED", tmp_path)
    monkeypatch.chdir(tmp_path)
    row, _ = rows(1, count=5, settings=TINY)
    assert (row.peer, row.peer_seconds, row.at_least, row.met, len(row.seconds)) == (None, (), None, None, 1)
    assert [list(found["models"]) for found in tables] == [["student.safetensors"]] * 2
    assert tables[0] == tables[1]
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_row_beside_yamnet(tmp_path, tables):
    if not yamnet(tmp_path):
        pytest.skip(f"no YAMNet in {evaluation.SHARED} (QKD_SHARED says where), or no ai_edge_litert")
    row, _ = rows(1, count=5, settings=TINY)
    assert (row.peer, row.at_least, len(row.seconds), len(row.peer_seconds)) == ("YAMNet", 10, 1, 1)
    assert [list(found["models"]) for found in tables] == [["student.safetensors"], ["yamnet"]] * 2
    assert [found["models"]["yamnet"]["bytes"] for found in tables[1::2]] == [4_126_810] * 2
