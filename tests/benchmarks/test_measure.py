"""How pairs are compared and timed, what a question keeps, and what the page shows."""

import json
import time

import numpy as np
import pytest

from benchmarks import common
from benchmarks.common import RESULTS, filled, processor, versions
from benchmarks.speed import __main__ as speed
from benchmarks.speed import lstm, measure
from benchmarks.speed.measure import Row, agree, in_turns
from qkd_jax.errors import InputError


def test_the_ratio_is_of_each_round():
    row = Row(what="", ours="", peer="p", seconds=[1.0, 2.0, 4.0], peer_seconds=[3.0, 2.0, 8.0], at_least=2)
    assert row.times_as_fast == (2.0, 1.5, 2.5)  # of 3, 1, 2
    assert row.met
    assert not Row(what="", ours="", seconds=[1.0, 3.0, 2.0], at_most=1.9).met
    assert Row(what="", ours="", seconds=[1.0]).met is None


def test_calls_take_turns_and_after_the_deadline_no_round_begins(monkeypatch):
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = in_turns(calls, rounds=2, repeat=2)
    assert "".join(called) == "ab" + "aabb" * 2
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    monkeypatch.setenv(measure.DEADLINE, str(time.time() - 1))
    assert {name: len(each) for name, each in in_turns(calls, rounds=9).items()} == {"a": 1, "b": 1}


def test_results_that_differ_are_not_compared():
    assert agree("x", [1.0, -4.0], [1.0, -4.1], within=0.03) == pytest.approx(0.025)
    with pytest.raises(InputError, match=r"x: expected the peer within 0.02 of ours, found it off by 0.025"):
        agree("x", [1.0, -4.0], [1.0, -4.1], within=0.02)
    with pytest.raises(InputError, match=r"ours is \(2,\), the peer's \(1,\)"):
        agree("x", [1.0, 2.0], [1.0], within=1)
    with pytest.raises(InputError, match="nan"):
        agree("x", [1.0], [np.nan], within=1)


def test_the_page_shows_what_was_measured_and_where(tmp_path):
    rows = [
        {"what": "a step", "ours": "ours", "peer": "theirs", "seconds": [0.5], "peer_seconds": [0.001]}
        | {"off": 0.0123, "note": "slow", "at_least": 1.0, "at_most": None},
        {"what": "a start", "ours": "detect", "seconds": [2e-5], "at_most": 6e-6},
    ]
    answer = {"machine": "a CPU", "device": "cpu", "versions": "jax 1", "rows": rows}
    common.write_json(tmp_path / "one/lstm.json", answer)
    parts = speed.parts(tmp_path)
    assert parts["lstm"].startswith("cpu: a CPU; jax 1.\n\n| what |")
    ratio = "0.002 (0.002 to 0.002)"
    assert (
        f"| a step | ours | 500 ms | theirs | 1 ms | {ratio} | ≥ 1: missed | 0.01 | slow |" in parts["lstm"]
    )
    assert "| a start | detect | 20 µs | – | – | – | ≤ 6 µs: missed | – |  |" in parts["lstm"]
    assert parts["lstm"].endswith("On a GPU: not measured.") and parts["growth"] == "Not measured yet."
    common.write_json(tmp_path / "two/lstm.json", answer | {"machine": "another CPU"})
    common.write_json(tmp_path / "gpu/lstm.json", answer | {"device": "a GPU"})
    all_three = speed.parts(tmp_path)["lstm"]
    assert all(
        f"{each}; jax 1.\n\n" in all_three for each in ("cpu: a CPU", "cpu: another CPU", "a GPU: a CPU")
    )
    assert "not measured" not in all_three


def test_the_page_is_that_of_the_committed_answers():
    page = (RESULTS / "speed.md").read_text()
    assert filled(page, speed.parts(RESULTS / "speed")) == page


@pytest.fixture
def question(monkeypatch):
    """A question with two rows, where JAX uses a CPU, which then fails."""

    def rows(rounds):
        yield Row(what="one", ours="", seconds=[1.0] * rounds)
        yield Row(what="two", ours="", seconds=[1.0])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lstm, "rows", rows, raising=False)
    monkeypatch.setitem(speed.QUESTIONS, "lstm", speed.Question("lstm", "rows", ("numpy",)))


def test_rows_are_kept_as_they_come(tmp_path, question):
    with pytest.raises(RuntimeError, match="out of memory"):
        speed.answer("lstm", 3, tmp_path)
    (path,) = tmp_path.glob("*/lstm.json")
    answer = json.loads(path.read_text())
    assert [(row["what"], len(row["seconds"])) for row in answer["rows"]] == [("one", 3), ("two", 1)]
    assert answer["machine"] == processor() and "numpy" in answer["versions"]


def test_quick_asks_about_train_steps_within_six_minutes(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(speed, "ask", lambda *arguments: asked.append(arguments))
    speed.main(["--quick", "--out", str(tmp_path / "speed")])
    assert [name for name, *_ in asked] == ["lstm", "quantized", "teacher", "distillation"]
    assert sum(seconds for *_, seconds in asked) <= 360 and {rounds for _, rounds, *_ in asked} == {3}
    assert "Not measured yet." in (tmp_path / "speed.md").read_text()


def test_a_question_that_takes_too_long_is_stopped_and_one_that_fails_is_named(tmp_path, monkeypatch, capsys):
    def run(command, env, timeout):
        assert float(env[measure.DEADLINE]) <= time.time() + 3 and timeout == 5
        raise speed.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(speed.subprocess, "run", run)
    speed.ask("lstm", 1, tmp_path, 5)
    assert "lstm: stopped after 5 s" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(speed.sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="lstm: ended with status 1"):
        speed.ask("lstm", 1, tmp_path)
    with pytest.raises(SystemExit):
        speed.main(["--only", "lstn"])


def test_marked_parts_are_replaced_and_others_refused(tmp_path):
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    assert filled(text, {"x": "new"}) == "a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\nb\n"
    assert filled(filled(text, {"x": "one"}), {"x": "new"}) == filled(text, {"x": "new"})
    with pytest.raises(InputError, match="expected the marked parts x, y, found x"):
        filled(text, {"x": "", "y": ""})
    with pytest.raises(InputError, match="expected <!-- end x --> after"):
        filled(text.replace("end x", "end z"), {"x": ""})
    assert versions("numpy", "no-such-package") == f"numpy {np.__version__}"
