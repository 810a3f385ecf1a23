"""The memory that this process may use: a container's limit, where it is lower than the machine's memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from eigenmerge.core.coordination import machine_memory as module
from eigenmerge.core.coordination.machine_memory import machine_memory


@pytest.mark.parametrize(("content", "limit"), [("max\n", None), ("2000000\n", 2_000_000), (str(2**63), None)])
def test_the_lower_of_machine_and_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, limit: int | None
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(content)
    monkeypatch.setattr(module, "_CGROUP_LIMITS", (str(file), str(tmp_path / "missing")))
    found = machine_memory()
    if limit is None:
        assert (found.total, found.source) == (psutil.virtual_memory().total, "machine")
    else:
        assert (found.available, found.total, found.source) == (limit, limit, "container")
    assert 0 < found.available <= found.total
