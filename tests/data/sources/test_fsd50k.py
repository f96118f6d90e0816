"""FSD50K in its own layout."""

import pytest

from qkd_jax.config import FSD50KData
from qkd_jax.data.sources.fsd50k import read_fsd50k
from tests.faults import SPLIT_WORDS, refused_exactly
from tests.recordings import clip

DEV = """\
fname,labels,mids,split
64760,"Electric_guitar,Guitar,Musical_instrument,Music","/m/02sgy,/m/0342h,/m/04szw,/m/04rlf",train
16399,Bark,/m/05tny_,val
"""
EVAL = "fname,labels,mids\n37199,Electric_guitar,/m/02sgy\n"


def read(root, dev=DEV, evaluation=EVAL):
    (root / "FSD50K.ground_truth").mkdir()
    (root / "FSD50K.ground_truth/dev.csv").write_text(dev)
    (root / "FSD50K.ground_truth/eval.csv").write_text(evaluation)
    return read_fsd50k(FSD50KData(root=str(root)))


def test_fsd50k_is_read_as_published(tmp_path):
    assert read(tmp_path) == [
        clip(
            "FSD50K.dev_audio/64760.wav",
            {"Electric_guitar", "Guitar", "Musical_instrument", "Music"},
            tmp_path,
            split="train",
        ),
        clip("FSD50K.dev_audio/16399.wav", {"Bark"}, tmp_path, split="valid"),
        clip("FSD50K.eval_audio/37199.wav", {"Electric_guitar"}, tmp_path, split="test"),
    ]


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        (
            "fname,labels,mids,split\n1,Bark,/m/05tny_,all\n",
            f"row 2: split: expected {SPLIT_WORDS}, got 'all'",
        ),
        (
            "fname,labels,mids\n1,Bark,/m/05tny_\n",
            "expected columns fname, labels, split, found fname, labels, mids",
        ),
        (
            "fname,labels,mids,split\n../../a,Bark,x,train\n",
            "row 2: fname: expected a path within --data.root, got 'FSD50K.dev_audio/../../a.wav'",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path, dev, message):
    with refused_exactly(f"{tmp_path}/FSD50K.ground_truth/dev.csv: {message}"):
        read(tmp_path, dev)


def test_a_missing_root_or_table_is_named(tmp_path):
    with refused_exactly(
        "--data.root: expected the folder that contains FSD50K.ground_truth/dev.csv, got none"
    ):
        read_fsd50k(FSD50KData())
    table = tmp_path / "FSD50K.ground_truth/dev.csv"
    with refused_exactly(f"--data.root: expected a table at {table}, found none"):
        read_fsd50k(FSD50KData(root=str(tmp_path)))
