"""Signals within the block are recorded; outside it nothing changes."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from gnewton.training.ending import StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_noted(number):
    before = [signal.getsignal(n) for n in NUMBERS]
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert [signal.getsignal(n) for n in NUMBERS] == before


def test_a_second_interrupt_acts_at_once():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGTERM


def test_outside_the_main_thread_nothing_changes():
    handlers = []

    def work():
        with StopSignals() as signals:
            handlers.append((signals.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert handlers == [(None, before)]
