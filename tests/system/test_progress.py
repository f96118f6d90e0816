"""Bars appear on terminals only, and can be nested."""

import io
import sys

from qkd_jax.system.progress import track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def nested():
    return [(a, b) for a in track(range(3), 3, "outer") for b in track(range(2), 2, "inner")]


def terminal(monkeypatch):
    """Not a fixture, since pytest replaces stderr between a test's setup and its call."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_nothing_is_written_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert nested() == [(a, b) for a in range(3) for b in range(2)]
    assert sys.stderr.getvalue() == ""


def test_nested_bars_show_on_a_terminal_and_their_titles_are_not_markup(monkeypatch):
    stderr = terminal(monkeypatch)
    assert nested() == [(a, b) for a in range(3) for b in range(2)]
    assert list(track(range(2), 2, "a[/b]")) == [0, 1]
    assert all(title in stderr.getvalue() for title in ("outer", "inner", "a[/b]"))


def test_prints_meanwhile_go_to_stdout(monkeypatch, capsys):
    terminal(monkeypatch)
    for item in track(range(2), 2, "bar"):
        print(f"item {item}")
    assert capsys.readouterr().out == "item 0\nitem 1\n"
