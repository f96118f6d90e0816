"""Signals are noted, not raised, and forgotten when the block ends."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from qkd_jax.system.interrupt import asked_to_stop, stop_if_asked, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_raises(number, capfd):
    before = signal.getsignal(number)
    with stop_requests():
        assert not asked_to_stop()
        stop_if_asked()
        signal.raise_signal(number)
        assert asked_to_stop()
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before and not asked_to_stop()
    assert capfd.readouterr().err == "Saving and stopping; press Ctrl-C again to quit immediately.\n"


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests():
            signal.raise_signal(signal.SIGINT)
            assert not asked_to_stop()
            signal.raise_signal(signal.SIGTERM)
            assert asked_to_stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_nested_blocks_share_their_requests():
    with stop_requests():
        with stop_requests():
            signal.raise_signal(signal.SIGTERM)
        assert asked_to_stop()


def test_outside_the_main_thread_nothing_changes():
    def handler():
        with stop_requests():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler).result() == signal.getsignal(signal.SIGINT)
