"""A unit of processor time, measured where a bound is checked: slow and busy machines take more for both."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable

_PATTERN = re.compile(r"(?:model\.)?layers\.(\d+)\.mlp\.experts\.(\d+)\.(\w+)_proj\.weight$")
_ITEMS = 10_000


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call in this process, in seconds."""
    started = time.process_time()
    call()
    return time.process_time() - started


def cpu_unit() -> float:
    """Return the processor time of matching, serializing and hashing 10,000 names: the work of a plan, about 0.1 s."""
    return cpu_seconds(_hash_names)


def _hash_names() -> str:
    digests: dict[str, str] = {}
    for index in range(_ITEMS):
        name = f"model.layers.{index // 384}.mlp.experts.{index % 128}.up_proj.weight"
        match = _PATTERN.match(name)
        assert match is not None
        content = {"name": name, "layer": match[1], "expert": match[2], "shape": [index, 64], "dtype": "BF16"}
        digests[name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return max(digests.values())
