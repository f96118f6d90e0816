import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from qkd_jax.data import arrays
from qkd_jax.data.logits import StepLogits, read_logits, read_step_logits, write_logits, write_step_logits
from tests.faults import refused

NAMES, EVENTS = ["audio/a.wav", "b.wav", "ü.wav"], ("bell", "knock")
LOGITS = np.random.default_rng(0).normal(0, 3, (3, 2)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "teacher" / "logits.npz"
    write_logits(path, NAMES, EVENTS, LOGITS)
    return path


def test_logits_come_back_in_the_requested_order(path):
    logits = read_logits(path, NAMES, EVENTS)
    assert logits.dtype == np.float32
    assert_array_equal(logits, LOGITS)
    assert_array_equal(read_logits(path, NAMES[::-1], EVENTS[::-1]), LOGITS[::-1, ::-1])
    assert_array_equal(read_logits(path, ["ü.wav", "b.wav"], ["knock"]), LOGITS[[2, 1], 1:])


def test_writing_replaces_the_file_or_leaves_it_whole(path):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise OSError("disk full")

    write_logits(path, NAMES, EVENTS, LOGITS + 1)
    with refused(r"logits\.npz: could not be written: disk full"):
        write_logits.__wrapped__(path, NAMES, EVENTS, Broken())
    assert_array_equal(read_logits(path, NAMES, EVENTS), LOGITS + 1)
    assert list(path.parent.iterdir()) == [path]


def test_clips_and_events_without_finite_logits_are_named(path):
    with refused(r"logits\.npz: expected logits for all clips, found none for 2 \(first: 'x.wav'\)"):
        read_logits(path, ["b.wav", "x.wav", "y.wav"], EVENTS)
    with refused(r"logits\.npz: expected logits for all events, found none for 1 \(first: 'siren'\)"):
        read_logits(path, NAMES, ("bell", "siren"))
    broken = LOGITS.copy()
    broken[1, 0] = np.nan
    write_logits(path, NAMES, EVENTS, broken)
    with refused(r"logits\.npz: expected finite logits"):
        read_logits(path, NAMES, EVENTS)
    assert_array_equal(read_logits(path, NAMES, ["knock"]), LOGITS[:, 1:])


def damage(path):
    content = bytearray(path.read_bytes())
    content[content.find(b"names.npy") + 60] ^= 0xFF
    path.write_bytes(content)


def pickle(path):
    names = np.array([*NAMES[:2], {"not": "a name"}], object)
    np.savez(path, names=names, events=np.array(EVENTS), logits=LOGITS)


def write_one_array(path):
    with path.open("wb") as file:
        np.save(file, LOGITS)


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda path: path.unlink(), cut(0), cut(400), cut(-10), damage, pickle),
        lambda path: path.write_text("clip,bell,knock\n"),
        lambda path: np.savez(path, names=np.array(NAMES), logits=LOGITS),
        lambda path: np.savez(path, names=np.array(NAMES), events=np.array(EVENTS), logits=LOGITS[:2]),
        write_one_array,
    ],
)
def test_a_file_that_does_not_hold_logits_is_named(path, spoil):
    spoil(path)
    with refused(r"logits\.npz: expected logits keyed by clip"):
        read_logits(path, NAMES, EVENTS)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"names": np.array([NAMES])}, "names: expected a 1-D array"),
        ({"names": np.arange(3)}, "names: expected a 1-D array of text, found int64"),
        ({"events": np.array("bell")}, "events: expected a 1-D array"),
        ({"logits": LOGITS.astype("U9")}, "logits: expected a 2-D array of numbers, found <U9"),
        ({"logits": LOGITS.astype(complex)}, "logits: expected a 2-D array of numbers"),
        ({"logits": LOGITS.astype(float) * 1e300}, "expected finite logits"),
    ],
)
def test_arrays_of_other_kinds_are_refused(path, changes, error):
    arrays = {"names": np.array(NAMES), "events": np.array(EVENTS), "logits": LOGITS.astype(np.float64)}
    np.savez(path, **arrays | changes)
    with refused(rf"logits\.npz: .*{error}"):
        read_logits(path, NAMES, EVENTS)


def test_a_billion_empty_names_are_refused(path):
    header = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }\n"
    np.savez(path, events=np.array(EVENTS), logits=LOGITS)
    with zipfile.ZipFile(path, "a") as archive:  # NumPy can't write this dtype
        archive.writestr("names.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with refused(r"logits\.npz: .*names: expected a 1-D array of text, found <U0"):
        read_logits(path, NAMES, EVENTS)


def test_an_archive_that_unpacks_to_too_much_is_refused(path, monkeypatch):
    monkeypatch.setattr(arrays, "_MAX_BYTES", 1000)
    monkeypatch.setattr(arrays, "_MAX_RATIO", 1)
    np.savez_compressed(path, names=np.array(NAMES), events=np.array(EVENTS), logits=np.zeros((3, 1000)))
    with refused(r"logits\.npz: .*at most \d{4} bytes, found 2\d{4}$"):
        read_logits(path, NAMES, EVENTS)


STEPS = StepLogits(LOGITS, np.arange(30.0).reshape(3, 5, 2), np.array([0.5, 0.75]), 4, 2)


def test_logits_of_steps_come_back_in_the_requested_order(tmp_path):
    write_step_logits(tmp_path / "steps.npz", NAMES, EVENTS, STEPS)
    logits = read_step_logits(tmp_path / "steps.npz", ["ü.wav", "b.wav"], ["knock"])
    assert_array_equal(logits.clip, LOGITS.astype(np.float16)[[2, 1], 1:])
    assert_array_equal(logits.steps, STEPS.steps[[2, 1]][..., 1:])
    assert_array_equal(logits.precision, [0.75])
    assert (logits.receptive_field, logits.stride) == (4, 2)
    assert logits.clip.dtype == logits.steps.dtype == logits.precision.dtype == np.float32


WRONG = {"clip": LOGITS[:2], "steps": STEPS.steps[..., :1], "precision": np.zeros(3)}


@pytest.mark.parametrize(
    ("field", "value"), [("receptive_field", 0), ("stride", 0), ("receptive_field", -1), *WRONG.items()]
)
def test_step_logits_of_other_shapes_or_lengths_are_refused(tmp_path, field, value):
    write_step_logits(tmp_path / "steps.npz", NAMES, EVENTS, STEPS._replace(**{field: value}))
    with refused(r"steps\.npz: expected logits of clips and steps"):
        read_step_logits(tmp_path / "steps.npz", NAMES, EVENTS)
