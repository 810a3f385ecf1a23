"""Decisions of scheduled runs, and latest.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.publishing.publication import (
    LATEST,
    MergeInputs,
    Publication,
    SkippedExpert,
    decide_update,
    folder_name,
    forget_folders,
    publish,
    read_publication,
)
from eigenmerge.core.publishing.run_order import RUNS, return_number, take_number
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
    first = dataclasses.replace(
        LAST, sequence=1, skipped={"x": SkippedExpert("NaN", "7", True)}, history=(LAST.folder,)
    )
    assert publish(store, first) is None
    assert read_publication(store) == first
    later = Publication(
        "2026-11-22-89abcdef", with_experts({"c": "3"}), 2, etags={"a": "1"}, history=("2026-11-22-89abcdef",)
    )
    assert publish(store, later) is None
    found = read_publication(store)
    assert found == dataclasses.replace(later, history=(later.folder, LAST.folder))
    forget_folders(store, [LAST.folder])
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
    publish(store, LAST)
    store.write(LATEST, store.read(LATEST)[:cut])
    with pytest.raises(CorruptObjectError, match=r"latest\.json.*delete it"):
        read_publication(store)


def test_a_pointer_of_an_earlier_version_is_read(place: Callable[[str], Store]) -> None:
    store = place("published")
    old = {"layout": 1, "folder": "f", "recipe": "r", "base": "b", "version": "0.1.0", "experts": {"a": "1"}}
    store.write(LATEST, json.dumps(old).encode())
    found = read_publication(store)
    assert found is not None and (found.folder, found.sequence, found.history) == ("f", 0, ("f",))
    assert decide_update(dataclasses.replace(found.inputs, run_key="k"), found).outcome == "full"


@pytest.mark.parametrize("field", ["run_key", "side_files", "recipe", "base"])
def test_everything_that_decides_the_result_decides_the_update(field: str) -> None:
    assert decide_update(dataclasses.replace(INPUTS, **{field: "other"}), LAST).outcome == "full"
    assert folder_name(datetime(2026, 1, 1), dataclasses.replace(INPUTS, **{field: "other"})) != folder_name(
        datetime(2026, 1, 1), INPUTS
    )


def test_a_damaged_folder_is_published_again() -> None:
    decision = decide_update(INPUTS, LAST, "the published folder is gone")
    assert (decision.outcome, decision.reason) == ("full", "the published folder is gone")


def test_the_pointer_never_goes_back(place: Callable[[str], Store]) -> None:
    store = place("published")
    newer = dataclasses.replace(LAST, folder="newer", sequence=7, history=("newer",))
    assert publish(store, newer) is None
    assert publish(store, dataclasses.replace(LAST, folder="older", sequence=6)) == newer
    assert read_publication(store) == newer


def test_of_runs_that_publish_together_the_last_planned_one_stays(place: Callable[[str], Store]) -> None:
    store = place("published")
    runs = [dataclasses.replace(LAST, folder=f"f{n}", sequence=n, history=(f"f{n}",)) for n in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda run: publish(store, run), reversed(runs)))
    found = read_publication(store)
    assert found is not None and found.folder == "f8"


def test_numbers_rise_and_are_never_given_twice(place: Callable[[str], Store]) -> None:
    store = place("published")
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: take_number(store, 0), range(8)))
    assert sorted(numbers) == list(range(1, 9))
    return_number(store, 8, 0)  # it was not published: the next run may have it
    assert take_number(store, 0) == 8
    return_number(store, 8, 8)
    assert not list(store.list(RUNS))
    assert take_number(store, 8) == 9
