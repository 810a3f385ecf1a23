"""Any content that a stranger could write gives a result or an Eigenmerge error: no other error, no hang, no gigabytes.

`make soak` runs each target for EIGENMERGE_FUZZ_SECONDS / number of targets (3600 in all by default). What it finds is
kept in corpus/TARGET/, and is read by every test run.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Verbosity, given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import EigenmergeError

from .targets import Target, make_targets

CORPUS = Path(__file__).parent / "corpus"
TARGETS = [
    "header", "index", "adapter_config", "config", "recipe", "spectrum", "part_record", "claim", "run_record",
    "manifest", "pointer", "tokenizer", "registry",
]  # fmt: skip
MOST_MEMORY = 64 * 2**20  # for inputs of some kilobytes
QUICK_EXAMPLES = 8

numbers = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0.5, 0, -1, 10**99, 2**63, 1e308])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def contents(draw: st.DrawFn, seed: bytes) -> bytes:
    """Random bytes, the seed with changed bytes, or, if it is JSON, the seed with a changed value."""
    way = draw(st.sampled_from(["value", "value", "bytes", "cut", "random"]))
    if way == "random":
        return draw(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
    if way == "cut":
        return seed[: draw(st.integers(0, len(seed)))]
    try:
        parsed: Any = json.loads(seed)
    except ValueError:
        parsed = None
    if way == "bytes" or parsed is None:
        start = draw(st.integers(0, len(seed)))
        return seed[:start] + draw(st.binary(max_size=8)) + seed[start + draw(st.integers(0, 8)) :]
    return json.dumps(changed(draw, parsed)).encode()


def changed(draw: st.DrawFn, original: Any) -> Any:
    """Return a deep copy with one value, somewhere inside, that is another or missing."""
    content = place = copy.deepcopy(original)
    while True:
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            break
        place = inner
    if draw(st.integers(0, 4)):
        place[key] = draw(values)
    else:
        del place[key]
    return content


def read(target: Target, content: bytes) -> None:
    try:
        target.read(content)
    except EigenmergeError as error:
        assert str(error).isprintable()


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = make_targets(tmp_path_factory.mktemp("fuzz"))
    assert list(found) == TARGETS
    return found


def fuzz(target: Target, examples: int, end: float = math.inf) -> None:
    """Read random contents until `end`, in the clock of time.monotonic: one may take 20 s on a busy machine."""

    @settings(
        deadline=None,
        max_examples=examples,
        database=None,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(contents(target.seed))
    def run(content: bytes) -> None:
        if time.monotonic() < end:
            read(target, content)

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_quickly(name: str, targets: Any) -> None:
    read(targets[name], targets[name].seed)
    for path in sorted((CORPUS / name).glob("*")):
        read(targets[name], path.read_bytes())
    fuzz(targets[name], QUICK_EXAMPLES)


@pytest.mark.parametrize("name", TARGETS)
def test_memory(name: str, targets: Any) -> None:
    """Small content that claims to be large, or is deep, takes little memory."""
    seed: bytes = targets[name].seed
    hostile = [b"[" * 5_000, b'{"a":' * 5_000, seed.replace(b"4", b"9" * 400), seed.replace(b"2", b"9" * 18)]
    read(targets[name], seed)  # imports
    tracemalloc.start()
    try:
        for content in hostile:
            read(targets[name], content)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_for_a_long_time(name: str, targets: Any) -> None:
    seconds = float(os.environ.get("EIGENMERGE_FUZZ_SECONDS", "3600")) / len(TARGETS)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        fuzz(targets[name], 200, end)
