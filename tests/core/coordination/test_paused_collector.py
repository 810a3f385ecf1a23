"""The garbage collector within and after `paused_collector`, in processes of their own: its state belongs to all."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc
from eigenmerge.core.coordination.paused_collector import paused_collector

with paused_collector(freeze={freeze}):
    assert not gc.isenabled()
    kept = [[] for _ in range(1000)]
assert gc.isenabled()
first = gc.get_freeze_count()
with paused_collector(freeze={freeze}):
    more = [[] for _ in range(1000)]
print(first, gc.get_freeze_count())
"""


def _counts(freeze: bool) -> list[int]:
    command = [sys.executable, "-c", _SCRIPT.format(freeze=freeze)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(count) for count in printed.split()]


def test_only_the_first_block_freezes() -> None:
    first, second = _counts(freeze=True)
    assert first > 1000
    assert second <= first


def test_nothing_is_frozen_without_being_asked() -> None:
    assert _counts(freeze=False) == [0, 0]
