"""Resident memory of this process, as Linux reports it."""

from __future__ import annotations

import re
from pathlib import Path


def resident(field: str) -> int:
    """Return VmRSS (now) or VmHWM (peak) in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    """Let VmHWM begin at the memory of now."""
    Path("/proc/self/clear_refs").write_text("5")
