"""A pytest plugin: `python -m pytest -p tests.pretended_device.plugin FILE` runs the merges of a test file that pass
through the fixture `pipeline` on the pretended device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.pretended_device.ledger import Counts
from tests.pretended_device.mode import pretended_device

_COUNTS: list[Counts] = []


@pytest.fixture(autouse=True)
def _merge_on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from eigenmerge.core.steps import merge_run as module

    real = module.merge_run

    def merge_run(*arguments: Any, **keys: Any) -> Any:
        with pretended_device() as ledger:
            try:
                return real(*arguments, **{**keys, "device": "cuda:0"})
            finally:
                _COUNTS.append(ledger.now)

    monkeypatch.setattr(module, "merge_run", merge_run)
    yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    operations = sum(counts.operations for counts in _COUNTS)
    terminalreporter.write_line(f"pretended device: {len(_COUNTS)} merges, {operations} operations")
