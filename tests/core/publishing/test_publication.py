"""Decisions of scheduled runs, and latest.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.publishing.publication import (
    LATEST,
    MergeInputs,
    Publication,
    decide_update,
    folder_name,
    read_publication,
    write_publication,
)
from eigenmerge.core.storage.store import Store

INPUTS = MergeInputs(recipe="r", base="b", version="0.1.0", experts={"a": "1", "b": "2"})
LAST = Publication("2026-11-21-01234567", INPUTS)

names = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("123"), max_size=6)


def with_experts(experts: dict[str, str]) -> MergeInputs:
    return dataclasses.replace(INPUTS, experts=experts)


def test_the_first_merge_is_full() -> None:
    decision = decide_update(INPUTS, None)
    assert (decision.outcome, decision.added) == ("full", ("a", "b"))


def test_nothing_new() -> None:
    decision = decide_update(INPUTS, LAST)
    assert decision.outcome == "nothing new"
    assert LAST.folder in decision.reason
    assert decide_update(with_experts({}), LAST).outcome == "nothing new"


def test_only_additions_are_incremental() -> None:
    decision = decide_update(with_experts({"a": "1", "b": "2", "c": "3"}), LAST)
    assert (decision.outcome, decision.added) == ("incremental", ("c",))


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (with_experts({"a": "1"}), "removed b"),
        (with_experts({"a": "1", "b": "9"}), "changed b"),
        (dataclasses.replace(INPUTS, recipe="other"), "recipe"),
        (dataclasses.replace(INPUTS, base="other"), "base model"),
        (dataclasses.replace(INPUTS, version="0.2.0"), "0.1.0 became 0.2.0"),
    ],
)
def test_any_other_change_is_full(now: MergeInputs, reason: str) -> None:
    decision = decide_update(now, LAST)
    assert decision.outcome == "full"
    assert reason in decision.reason


@settings(deadline=None, max_examples=200)
@given(before=names, now=names)
def test_the_decision_accounts_for_every_expert(before: dict[str, str], now: dict[str, str]) -> None:
    decision = decide_update(with_experts(now), Publication("x", with_experts(before)))
    if not now:
        assert decision.outcome == "nothing new"
        return
    after = {name: fingerprint for name, fingerprint in before.items() if name not in decision.removed}
    after |= {name: now[name] for name in (*decision.added, *decision.changed)}
    assert after == now
    assert (decision.outcome == "nothing new") == (before == now)
    assert (decision.outcome == "incremental") == (before != now and before.items() <= now.items())


def test_the_folder_depends_on_the_day_and_the_inputs() -> None:
    night = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
    name = folder_name(night, INPUTS)
    assert name.startswith("2026-11-21-")
    assert folder_name(night + timedelta(hours=3), INPUTS) == name
    assert folder_name(night + timedelta(days=1), INPUTS) != name
    assert folder_name(night, with_experts({"a": "1"})) != name
    reordered = with_experts({"b": "2", "a": "1"})
    assert folder_name(night, reordered) == name


def test_a_publication_is_read_as_it_was_written(place: Callable[[str], Store]) -> None:
    store = place("published")
    assert read_publication(store) is None
    write_publication(store, LAST)
    assert read_publication(store) == LAST
    later = Publication("2026-11-22-89abcdef", with_experts({"c": "3"}))
    write_publication(store, later)
    assert read_publication(store) == later
    assert [info.key for info in store.list("")] == [LATEST]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"layout": 99}', b'{"layout": 1, "experts": 3}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_damaged_publication_is_refused(place: Callable[[str], Store], content: bytes) -> None:
    store = place("published")
    store.write(LATEST, content)
    with pytest.raises(CorruptObjectError, match=r"latest\.json.*delete it"):
        read_publication(store)


@pytest.mark.parametrize("cut", [1, 30, -3])
def test_a_truncated_publication_is_refused(place: Callable[[str], Store], cut: int) -> None:
    store = place("published")
    write_publication(store, LAST)
    store.write(LATEST, store.read(LATEST)[:cut])
    with pytest.raises(CorruptObjectError, match=r"latest\.json.*delete it"):
        read_publication(store)
