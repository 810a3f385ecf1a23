"""Patterns of adapters: the first that matches counts, as in PEFT, and no pattern takes long."""

from __future__ import annotations

import time

import pytest

from eigenmerge.core.planning.inputs.adapters.module_patterns import ModulePatterns


def test_names_and_expressions_match_the_end_of_a_name_after_a_dot() -> None:
    patterns = ModulePatterns(
        {
            "q_proj": 1.0,
            r"model\.layers\.0\.k_proj": 2.0,
            "(up|down)_proj": 3.0,
            "^model.layers.1.*$": 4.0,
            "layers.2.q_proj": 5.0,
        }
    )
    found = {
        name: patterns.find(name)
        for name in ("a.q_proj", "q_proj", "model.layers.0.k_proj", "x.up_proj", "model.layers.1.z", "layers.2.q_proj")
    }
    assert list(found.values()) == [1.0, 1.0, 2.0, 3.0, 4.0, 1.0]
    assert patterns.find("xq_proj") is None and patterns.find("k_proj") is None


def test_an_expression_with_exponential_time_in_other_engines_is_quick() -> None:
    started = time.process_time()
    patterns = ModulePatterns({"(a+)+$": 1.0, "(a|aa)+$": 2.0, "(.*.*.*.*)*x": 3.0})
    assert patterns.find("a" * 500 + "b") is None and patterns.find("a" * 500) == 1.0
    assert time.process_time() - started < 5


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?=a)b", "(", "a{99999}", "x|" * 600])
def test_other_expressions_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"regular expression|characters"):
        ModulePatterns({pattern: 1.0})
