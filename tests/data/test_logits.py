import zipfile

import numpy as np
import pytest

from qkd_jax.data import arrays
from qkd_jax.data.logits import StepLogits, read_logits, read_step_logits, write_logits, write_step_logits
from qkd_jax.errors import InputError

NAMES, EVENTS = ["audio/a.wav", "b.wav", "ü.wav"], ("bell", "knock")
LOGITS = np.random.default_rng(0).normal(0, 3, (3, 2)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "teacher" / "logits.npz"
    write_logits(path, NAMES, EVENTS, LOGITS)
    return path


def test_logits_come_back_in_the_order_asked_for(path):
    logits = read_logits(path, NAMES, EVENTS)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, LOGITS)
    np.testing.assert_array_equal(read_logits(path, NAMES[::-1], EVENTS[::-1]), LOGITS[::-1, ::-1])
    np.testing.assert_array_equal(read_logits(path, ["ü.wav", "b.wav"], ["knock"]), LOGITS[[2, 1], 1:])


def test_writing_replaces_the_file_and_leaves_nothing_else(path):
    write_logits(path, NAMES, EVENTS, LOGITS + 1)
    np.testing.assert_array_equal(read_logits(path, NAMES, EVENTS), LOGITS + 1)
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(path):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise OSError("disk full")

    with pytest.raises(InputError, match=r"logits\.npz: could not be written: disk full"):
        write_logits.__wrapped__(path, NAMES, EVENTS, Broken())
    np.testing.assert_array_equal(read_logits(path, NAMES, EVENTS), LOGITS)


@pytest.mark.parametrize(
    ("names", "events", "message"),
    [
        (["b.wav", "x.wav", "y.wav"], EVENTS, "no logits for 2 clips, first 'x.wav'"),
        (NAMES, ("bell", "siren"), "no logits for 1 events, first 'siren'"),
    ],
)
def test_what_the_teacher_has_not_seen_is_named(path, names, events, message):
    with pytest.raises(InputError, match=rf"logits\.npz: {message}"):
        read_logits(path, names, events)


def test_values_that_are_not_finite_are_errors_where_they_are_asked_for(path):
    broken = LOGITS.copy()
    broken[1, 0] = np.nan
    write_logits(path, NAMES, EVENTS, broken)
    with pytest.raises(InputError, match=r"logits\.npz: expected finite logits"):
        read_logits(path, NAMES, EVENTS)
    np.testing.assert_array_equal(read_logits(path, NAMES, ["knock"]), LOGITS[:, 1:])


def missing(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("clip,bell,knock\n")


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_an_end(path):
    path.write_bytes(path.read_bytes()[:-10])


def damaged(path):
    content = bytearray(path.read_bytes())
    middle = content.find(b"names.npy") + 60
    content[middle] ^= 0xFF
    path.write_bytes(content)


def pickled(path):
    names = np.array([*NAMES[:2], {"not": "a name"}], object)
    np.savez(path, names=names, events=np.array(EVENTS), logits=LOGITS)


def other_arrays(path):
    np.savez(path, names=np.array(NAMES), logits=LOGITS)


def too_few_rows(path):
    np.savez(path, names=np.array(NAMES), events=np.array(EVENTS), logits=LOGITS[:2])


def one_array(path):
    with path.open("wb") as file:
        np.save(file, LOGITS)


@pytest.mark.parametrize(
    "spoil",
    [
        missing,
        empty,
        text,
        truncated,
        without_an_end,
        damaged,
        pickled,
        other_arrays,
        too_few_rows,
        one_array,
    ],
)
def test_a_file_that_is_not_whole_is_named(path, spoil):
    spoil(path)
    with pytest.raises(InputError, match=r"logits\.npz: expected logits keyed by clip"):
        read_logits(path, NAMES, EVENTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": np.array([NAMES])}, "names: expected 1 dimensions"),
        ({"names": np.arange(3)}, "names: expected 1 dimensions of kind U, found int64"),
        ({"events": np.array("bell")}, "events: expected 1 dimensions"),
        ({"logits": LOGITS.astype("U9")}, "logits: expected 2 dimensions of kind fiu, found <U9"),
        ({"logits": LOGITS.astype(complex)}, "logits: expected 2 dimensions of kind fiu"),
        ({"logits": LOGITS.astype(float) * 1e300}, "expected finite logits"),
    ],
)
def test_arrays_of_other_kinds_are_refused(path, changes, said):
    arrays = {"names": np.array(NAMES), "events": np.array(EVENTS), "logits": LOGITS.astype(np.float64)}
    np.savez(path, **arrays | changes)
    with pytest.raises(InputError, match=rf"logits\.npz: .*{said}"):
        read_logits(path, NAMES, EVENTS)


def test_a_billion_names_of_no_letters_make_no_list(path):
    header = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }\n"
    np.savez(path, events=np.array(EVENTS), logits=LOGITS)
    with zipfile.ZipFile(path, "a") as archive:  # NumPy itself writes no such text
        archive.writestr("names.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match=r"logits\.npz: .*names: expected 1 dimensions of kind U, found <U0"):
        read_logits(path, NAMES, EVENTS)


def test_what_unpacks_to_gigabytes_is_not_unpacked(path, monkeypatch):
    monkeypatch.setattr(arrays, "_MOST", 1000)
    monkeypatch.setattr(arrays, "_RATIO", 1)
    np.savez_compressed(path, names=np.array(NAMES), events=np.array(EVENTS), logits=np.zeros((3, 1000)))
    with pytest.raises(InputError, match=r"logits\.npz: .*at most \d{4} bytes, found 2\d{4}$"):
        read_logits(path, NAMES, EVENTS)


@pytest.mark.parametrize("span", [(0, 1), (1, 0), (-1, 1)])
def test_steps_take_some_frames(tmp_path, span):
    said = StepLogits(LOGITS, np.zeros((3, 5, 2)), np.zeros(2), span)
    write_step_logits(tmp_path / "steps.npz", NAMES, EVENTS, said)
    with pytest.raises(InputError, match=r"steps\.npz: expected logits of clips and steps"):
        read_step_logits(tmp_path / "steps.npz", NAMES, EVENTS)
