"""An interrupted stream resumes exactly, and from no state but its own."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkd_jax.config import EventConfig
from qkd_jax.detector import events, resume, stream
from qkd_jax.detector.file import save
from qkd_jax.errors import InputError
from tests.artefacts import split, with_array, with_document
from tests.detector.test_events import medians, sound
from tests.detectors import FORMS, PLAIN, random_detector

SAMPLES = 30_000


@functools.cache
def runtime_of(network=PLAIN, **fields):
    """A random detector whose thresholds are the medians of its posteriors."""
    detector = random_detector(network)
    thresholds = {"x": medians(detector, sound(SAMPLES))}
    given = {"thresholds": thresholds, "use": "x", "end": 1.0, "median_seconds": 0.05, "gap_seconds": 0.03}
    return stream.in_numpy(dataclasses.replace(detector, event_config=EventConfig(**given | fields)))


def owner_of(of, **fields):
    given = {"model": "0" * 64, "runtime": "numpy", "event_config": of.detector.event_config}
    return resume.Owner(**given | fields)


def state_after(runtime, samples):
    rule = events.event_rule(runtime.detector)
    return events.process(runtime, rule, events.begin(runtime, rule), samples)[0]


@pytest.fixture
def saved(tmp_path):
    """A runtime, and the file of its state after some seconds."""
    runtime, path = runtime_of(), tmp_path / "state"
    resume.save(path, owner_of(runtime), state_after(runtime, sound(SAMPLES)))
    return runtime, path


def loaded(path, runtime, of=None):
    return resume.load(path, of or owner_of(runtime), runtime)


def detect_and_save(path, runtime, blocks):
    where = path, owner_of(runtime), runtime
    return resume.detect_and_save(*where, resume.load_or_start(*where), blocks)


def leaves(state):
    """Everything in a state, in order."""
    if isinstance(state, tuple):
        return [leaf for part in state for leaf in leaves(part)]
    return [(np.asarray(state).dtype, np.asarray(state).shape, np.asarray(state).tolist())]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("history", [None, 0.2])
def test_a_state_is_saved_to_the_last_bit(tmp_path, form, history):
    runtime = runtime_of(FORMS[form], history_seconds=history)
    for samples in (0, 100, 1000, SAMPLES):
        state = state_after(runtime, sound(samples))
        resume.save(tmp_path / "state", owner_of(runtime), state)
        assert leaves(loaded(tmp_path / "state", runtime)) == leaves(state)
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


@settings(deadline=None, max_examples=6)
@given(cuts=st.lists(st.integers(0, SAMPLES), max_size=6), history=st.sampled_from([None, 0.2]))
def test_a_stream_in_pieces_gives_the_events_of_the_whole(tmp_path_factory, cuts, history):
    path, runtime = tmp_path_factory.mktemp("state") / "state", runtime_of(history_seconds=history)
    whole, found = list(events.detect_in(runtime, [sound(SAMPLES)])), []
    for piece in np.split(sound(SAMPLES), sorted(cuts)):
        found += detect_and_save(path, runtime, [piece])
    rest = events.finish(events.event_rule(runtime.detector), loaded(path, runtime).events)
    assert found + rest == whole and len(found) > 5


def test_a_block_counts_only_when_all_of_its_events_were_reported(tmp_path):
    runtime, path, halves = runtime_of(), tmp_path / "state", np.split(sound(SAMPLES), 2)
    first = list(detect_and_save(tmp_path / "other", runtime, halves[:1]))
    second = detect_and_save(path, runtime, halves)
    assert [next(second) for _ in range(len(first) + 1)][:-1] == first
    second.close()
    assert leaves(loaded(path, runtime)) == leaves(state_after(runtime, halves[0]))


def test_a_failure_leaves_the_state_of_the_blocks_before(tmp_path):
    runtime, path = runtime_of(), tmp_path / "state"

    def blocks():
        yield sound(SAMPLES)
        raise InputError("mic: gone")

    with pytest.raises(InputError, match="mic: gone"):
        list(detect_and_save(path, runtime, blocks()))
    assert leaves(loaded(path, runtime)) == leaves(state_after(runtime, sound(SAMPLES)))


def test_the_state_is_saved_after_events_and_each_minute(tmp_path, monkeypatch):
    runtime, written = runtime_of(), []
    found = iter([[], [], [], [], ["event"], [], []])

    def process(runtime, rule, state, block):
        after = state.stream._replace(steps=state.stream.steps + 100 * 20)
        return state._replace(stream=after), next(found)

    monkeypatch.setattr(resume, "process", process)
    monkeypatch.setattr(resume, "save", lambda path, owner, state: written.append(state.stream.steps // 100))
    assert list(detect_and_save(tmp_path / "state", runtime, [sound(0)] * 7)) == ["event"]
    assert written == [0, 60, 100, 140]


def test_the_state_of_another_detector_is_refused(saved):
    runtime, path = saved
    limited = runtime_of(history_seconds=2.0)
    for of, fields, message in (
        (runtime, {"model": "1" * 64}, f"expected a state with model {'1' * 64}, found one with {'0' * 64}"),
        (runtime, {"runtime": "c"}, "expected a state with runtime c, found one with numpy"),
        (limited, {}, r"expected a state with history_seconds 2\.0, found one with None"),
    ):
        with pytest.raises(InputError, match=rf"^{path}: {message}$"):
            loaded(path, of, owner_of(of, **fields))


def test_other_files_are_refused(saved):
    runtime, path = saved
    data = path.read_bytes()

    def refused(content, message):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            loaded(path, runtime)
        assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()

    for place in range(0, len(data), 13):
        refused(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], "expected|metadata")
    for length in (0, 7, 100, len(data) - 1):
        refused(data[:length], r"expected a state in a \.safetensors file|expected a \.safetensors file")
    save(random_detector(PLAIN), path)
    refused(path.read_bytes(), r"expected metadata \['qkd_jax state, version 1'\]")
    with pytest.raises(InputError, match=r"state/x: could not be written: (Not a directory|File exists)"):
        next(detect_and_save(path / "x", runtime, []), None)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"state: expected a state's file, found none"):
        loaded(path, runtime)


def changed(data, changes):
    """`data` with other numbers in its document or its arrays, and a correct checksum."""
    for name, value in changes.items():
        if isinstance(value, np.generic):
            begin, end = split(data)[0][name]["data_offsets"]
            data = with_array(data, name, np.full((end - begin) // value.itemsize, value))
        else:
            data = with_document(data, lambda document: document.update({name: value}))
    return data


NONE, UNREAD = np.int64(-1), "unread, skip: expected fewer than 400 samples"
OTHERS = "samples: expected values that a stream can leave, found others"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps: expected at least 0, got -1"),
        ({"steps": 1 << 60}, "steps: expected at most"),
        ({"steps": 1.5}, "steps: expected an integer"),
        ({"steps": 0}, r"recent: expected float32 \[0, 3\], got float32 \[4, 3\]"),
        ({"steps": 3}, r"(first|last): expected values that a stream can leave"),
        ({"unread": 10**9}, UNREAD),
        ({"unread": 3}, r"samples: expected float32 \[3\]"),
        ({"skip": 1}, f"{UNREAD} to read, or up to 160 to skip"),
        ({"samples": np.float32(np.nan)}, OTHERS),
        ({"samples": np.float32(3e38)}, OTHERS),
        ({"recent": np.float32(np.inf)}, "recent: "),
        *(({"cells.0.0": np.int32(code)}, r"cells\.0\.0: ") for code in (128, -129)),
        ({"cells.0.1": np.int32(1 << 15)}, r"cells\.0\.1: "),
        *(({"first": np.int64(step)}, "first: ") for step in (-2, 1 << 40)),
        *(({"last": np.int64(step)}, "last: ") for step in (-3, 1 << 62)),
        ({"peak": np.float64(np.nan)}, "peak: "),
        *(({"first": NONE, "peak": np.float64(peak)}, "peak: ") for peak in (1, np.inf)),
        ({"first": np.int64(100), "last": np.int64(99), "peak": np.float64(1)}, "last: "),
    ],
)
def test_a_hostile_state_is_refused(saved, changes, message):
    runtime, path = saved
    good = path.read_bytes()
    path.write_bytes(with_document(good, lambda document: None))
    loaded(path, runtime)
    path.write_bytes(changed(good, changes))
    with pytest.raises(InputError, match=message) as caught:
        loaded(path, runtime)
    assert str(caught.value).isprintable()


def test_a_state_of_an_earlier_release_loads(saved):
    """It calls the owner's `event_config` `detection`."""
    runtime, path = saved
    state = loaded(path, runtime)

    def rename(document):
        document["owner"]["detection"] = document["owner"].pop("event_config")

    path.write_bytes(with_document(path.read_bytes(), rename))
    assert leaves(loaded(path, runtime)) == leaves(state)
