"""Signals in the middle of a run."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from scgpt_tl.engine._stop import Stop


@pytest.mark.usefixtures("signals_heard")
def test_the_first_signal_is_noted_and_the_second_acts():
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("signals_heard")
def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_it_ends_as_the_signal_would_have(number, kind):
    stop = Stop()
    stop.signal = number
    error = stop.error("saved")
    assert type(error) is kind
    assert str(error) == "saved"


def test_another_thread_gets_no_signals():
    before = signal.getsignal(signal.SIGINT)
    found = []

    def work() -> None:
        with Stop() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]
