"""Every built-in method passes `check_method`, and methods with one wrong property each fail it."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.numerics.method_checks import check_method
from eigenmerge.core.numerics.registry import built_in_methods

NEEDED: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.5},
    "nearswap": {"t": 0.01},
    "wudi": {"iterations": 20},
    "optmerge": {"iterations": 20},
}
# mergekit counts the base among the models of these
ONE_OTHER_MODEL = ("slerp", "nearswap", "arcee_fusion", "passthrough")


@pytest.mark.parametrize("name", built_in_methods())
def test_a_built_in_method_passes(name: str) -> None:
    check_method(name, num_experts=1 if name in ONE_OTHER_MODEL else 3, **NEEDED.get(name, {}))
