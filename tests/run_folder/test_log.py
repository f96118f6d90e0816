"""The record of a model: JSON lines that survive a kill, and the same figures for TensorBoard."""

import json

import pytest
from tensorboardX.proto.event_pb2 import Event

from qkd_jax.run_folder.log import open_log, read_epochs, read_log

RECORDS = [
    {"step": 1, "loss": 0.5, "grad_norm": 2.0},
    {"step": 2, "loss": 0.25, "grad_norm": 1.0},
    {"step": 2, "epoch": 1, "epoch_loss": 0.375, "valid": {"auc": 70.0, "eer": 30.0}},
    {"step": 3, "loss": 0.125, "grad_norm": 0.5},
]


def events_in(folder):
    """(tag, step, value) of each scalar in TensorBoard's one file in `folder`."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        content = content[12 + length + 4 :]
    return found


def write(folder, records, step=0):
    with open_log(folder, step) as log:
        for record in records:
            log(**record)


def test_records_are_read_back(tmp_path):
    write(tmp_path / "m", RECORDS)
    assert read_log(tmp_path / "m") == RECORDS
    assert read_log(tmp_path / "m", 2) == RECORDS[:3]
    assert read_log(tmp_path / "nothing") == []


def test_going_on_drops_what_was_not_saved_and_half_a_line(tmp_path):
    write(tmp_path, RECORDS)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    write(tmp_path, [{"step": 3, "loss": 9.0}], step=2)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*RECORDS[:3], {"step": 3, "loss": 9.0}]


def test_a_failure_to_begin_keeps_the_record(tmp_path, monkeypatch):
    write(tmp_path, RECORDS)
    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, [], step=3)
    assert read_log(tmp_path) == RECORDS


def test_tensorboard_has_each_figure_once_even_after_going_on(tmp_path):
    write(tmp_path, RECORDS)
    write(tmp_path, [{"step": 3, "loss": 0.0625}], step=2)
    expected = [("loss", 1, 0.5), ("loss", 2, 0.25), ("loss", 3, 0.0625), ("grad_norm", 1, 2.0)]
    expected += [("grad_norm", 2, 1.0), ("epoch", 2, 1.0), ("epoch_loss", 2, 0.375)]
    expected += [("auc", 2, 70.0), ("eer", 2, 30.0)]
    assert sorted(events_in(tmp_path)) == sorted(expected)


@pytest.mark.parametrize(
    "line",
    [
        *(b"null", b"[]", b"3", b"{}", b"\0" * 100, b'{"a":' * 100_000),
        *(b'{"loss": 0.5}', b'{"step": 2}', b'{"step": 2.5, "loss": 0.5}', b'{"step": null, "loss": 0.5}'),
        *(b'{"step": 2, "loss": %s}' % loss for loss in (b'"0.5"', b"NaN", b"[0.5]", b"1" + b"0" * 4000)),
        b'{"step": 2, "loss": 0.5\xff}',
        b'{"step": 2, "loss": 0.5, "epoch": 1}',
        b'{"step": 2, "epoch": 1, "epoch_loss": 0.5}',
        *(
            b'{"step": 2, "epoch": 1, "epoch_loss": 0.5, "valid": %s}' % valid
            for valid in (b"1", b'{"auc": 1.0}', b'{"auc": 1.0, "eer": {}}')
        ),
    ],
)
def test_what_is_no_record_is_left_out(tmp_path, line):
    write(tmp_path, RECORDS)
    content = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(line + b"\n" + content + line + b"\n")
    assert read_log(tmp_path) == RECORDS
    assert read_epochs(tmp_path) == RECORDS[2:3]
