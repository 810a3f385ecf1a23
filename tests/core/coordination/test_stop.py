"""Stop signals: set once, by a call or by a deadline, and not shared with other processes."""

from __future__ import annotations

import pickle
import time

import pytest

from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.errors import InterruptedRunError


def test_a_signal_that_is_not_set_does_nothing() -> None:
    stop = StopSignal()
    stop.check()
    assert not stop.is_set


def test_a_stopped_run_says_why_and_how_to_resume() -> None:
    stop = StopSignal()
    stop.stop("Ctrl-C")
    stop.stop("another reason")
    assert stop.is_set
    with pytest.raises(InterruptedRunError, match=r"stopped by Ctrl-C; .*run the same command again"):
        stop.check()


def test_the_deadline() -> None:
    StopSignal(deadline=time.monotonic() + 60).check()
    stop = StopSignal(deadline=time.monotonic() + 0.05)
    time.sleep(0.1)
    with pytest.raises(InterruptedRunError, match="its time limit"):
        stop.check()


def test_a_reason_before_the_deadline_stays() -> None:
    stop = StopSignal(deadline=time.monotonic() - 1)
    stop.stop("Ctrl-C")
    assert stop.error().args == StopSignal(reason="Ctrl-C").error().args


def test_another_process_gets_a_signal_of_its_own() -> None:
    stop = StopSignal(deadline=time.monotonic() - 1)
    stop.stop("Ctrl-C")
    copy = pickle.loads(pickle.dumps(stop))
    assert not copy.is_set and copy.deadline is None
