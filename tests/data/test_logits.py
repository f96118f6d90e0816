import numpy as np
import pytest

from qkd_jax.config import InputError
from qkd_jax.data.logits import read_logits, write_logits

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
