"""Bars appear on terminals only, and can be nested."""

import io
import sys

from qkd_jax.system.progress import track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def nested():
    return [(a, b) for a in track(range(3), 3, "outer") for b in track(range(2), 2, "inner")]


def test_nothing_is_written_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert nested() == [(a, b) for a in range(3) for b in range(2)]
    assert sys.stderr.getvalue() == ""


def test_nested_bars_show_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert nested() == [(a, b) for a in range(3) for b in range(2)]
    assert "outer" in sys.stderr.getvalue()
    assert "inner" in sys.stderr.getvalue()


def test_prints_meanwhile_go_to_stdout(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for item in track(range(2), 2, "bar"):
        print(f"item {item}")
    assert capsys.readouterr().out == "item 0\nitem 1\n"


def test_a_title_is_not_markup(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(track(range(2), 2, "a[/b]")) == [0, 1]
    assert "a[/b]" in sys.stderr.getvalue()
