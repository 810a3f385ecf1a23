"""Claims: one holder at a time; taken over from a dead process at once or when stale, never from a live one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eigenmerge.core.coordination import claims
from eigenmerge.core.coordination.claim_keys import claim_key
from eigenmerge.core.coordination.claims import ClaimedElsewhere, ClaimWatcher, claimed_shard, hold_run, is_alive
from eigenmerge.core.coordination.process_identity import this_process
from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.errors import InterruptedRunError
from eigenmerge.core.storage.store import Store

KEY = claim_key("parts/abc.safetensors")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.4)  # eight heartbeats: a busy machine skips some


def written(store: Store, **changes: Any) -> None:
    """Write the claim of this process with some fields changed."""
    held = ClaimWatcher(store, KEY, {"run": "x"}).acquire()
    assert held is not None
    content = json.loads(store.read(KEY)) | changes
    held.release()
    store.write(KEY, json.dumps(content).encode())


def test_one_at_a_time(store: Store) -> None:
    with ClaimWatcher(store, KEY).acquire() as claim:  # pyright: ignore[reportOptionalContextManager]
        assert claim.check()
        assert ClaimWatcher(store, KEY).acquire() is None
    assert not store.exists(KEY)
    again = ClaimWatcher(store, KEY).acquire()
    assert again is not None
    again.release()


def test_the_claim_of_a_live_thread_is_never_taken_over(store: Store, quick: None) -> None:
    watcher = ClaimWatcher(store, KEY)
    with ClaimWatcher(store, KEY).acquire():  # pyright: ignore[reportOptionalContextManager]
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5 or not watcher.has_moved:
            assert watcher.acquire() is None
            assert time.monotonic() < begun + 30
            time.sleep(0.02)


def test_the_claim_of_a_killed_process_is_taken_over_at_once(store: Store) -> None:
    code = (
        "import sys, os; from eigenmerge.core.coordination.claims import *;"
        " from eigenmerge.core.storage.store import Store;"
        f" ClaimWatcher(Store(sys.argv[1]), {KEY!r}).acquire(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, store.root_uri])
    assert killed.returncode == -9
    assert store.exists(KEY)
    taken = ClaimWatcher(store, KEY).acquire()
    assert taken is not None
    taken.release()


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"boot": "another"}, {"host": "elsewhere", "pid": 1}], ids=str
)
def test_the_claim_of_another_machine_is_taken_over_when_it_is_stale(
    store: Store, quick: None, changes: dict[str, Any]
) -> None:
    written(store, **changes)
    watcher = ClaimWatcher(store, KEY)
    started = time.monotonic()
    while (claim := watcher.acquire()) is None:
        time.sleep(0.02)
    claim.release()
    assert 0.4 <= time.monotonic() - started < 5


@pytest.mark.parametrize(
    "changes", [{"pid": 2**22 + 1}, {"started": 0.0}, {"started": "0"}, {"pid": "none"}, {"pid": 2**70}], ids=str
)
def test_the_claim_of_a_process_that_does_not_exist(store: Store, changes: dict[str, Any]) -> None:
    written(store, **changes)
    claim = ClaimWatcher(store, KEY).acquire()
    assert claim is not None
    claim.release()


def test_a_holder_that_lost_its_claim_leaves_the_new_one_alone(store: Store, quick: None) -> None:
    first = ClaimWatcher(store, KEY).acquire()
    assert first is not None
    store.write(KEY, json.dumps({"id": "another", "host": "h", "boot": "b", "pid": 1, "started": "1"}).encode())
    deadline = time.monotonic() + 60
    while not first.is_lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert first.is_lost
    first.release()
    assert json.loads(store.read(KEY))["id"] == "another"


def test_an_abandoned_claim_keeps_its_facts_and_is_free(store: Store) -> None:
    claim = ClaimWatcher(store, KEY, {"run_key": "r"}).acquire()
    assert claim is not None
    claim.abandon()
    assert json.loads(store.read(KEY)) == {"run_key": "r"}
    taken = ClaimWatcher(store, KEY).acquire()
    assert taken is not None
    taken.release()


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.dictionaries(
            st.sampled_from(["id", "host", "boot", "pid", "started", "beat"]),
            st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.integers(), max_size=2)),
        ).map(lambda found: json.dumps(found).encode()),
        st.just(b"[" * 100_000),
    )
)
def test_any_content_delays_at_most(store: Store, content: bytes) -> None:
    store.write(KEY, content)
    claim = ClaimWatcher(store, KEY).acquire()
    if claim is not None:
        claim.release()
    assert claim is not None or b'"host"' in content, "content without an owner delays nobody"


def test_of_many_at_once_one_wins(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        won = [claim for claim in pool.map(lambda _: ClaimWatcher(store, KEY).acquire(), range(8)) if claim]
    assert len(won) == 1
    won[0].release()
    assert os.listdir(Path(store.root_uri) / "claims") == []  # noqa: PTH208


def test_a_claim_that_this_process_could_not_delete_is_free_at_the_second_poll(
    store: Store, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, and a notebook starts the merge again in the same process."""
    claim = ClaimWatcher(store, "claims/part.json").acquire()
    assert claim is not None
    with monkeypatch.context() as patch:
        patch.setattr(claim, "check", lambda: False)  # neither written to nor deleted
        claim.abandon()
    watcher = ClaimWatcher(store, "claims/part.json")
    assert watcher.acquire() is None
    monkeypatch.setattr(claims, "STALE_SECONDS", 1e9)
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.05)
    time.sleep(0.1)
    again = watcher.acquire()
    assert again is not None
    other = ClaimWatcher(store, "claims/part.json")
    assert other.acquire() is None
    time.sleep(0.1)
    assert other.acquire() is None, "a held one stays held"
    again.release()


def test_a_run_may_be_held_several_times(store: Store) -> None:
    with hold_run(store, "r"), hold_run(store, "r"):
        assert len(list(store.list("claims/"))) == 2
    assert list(store.list("claims/")) == []


@pytest.mark.parametrize(
    ("changes", "seconds", "alive"),
    [
        ({}, 0, True),
        ({}, 299, True),
        ({}, 301, False),
        ({"host": "elsewhere"}, 299, True),
        ({"host": "elsewhere"}, 301, False),
        ({"pid": 2**22 + 1}, 0, False),
        ({"beat": ...}, 0, False),
    ],
    ids=str,
)
def test_a_claim_that_is_read_once(changes: dict[str, Any], seconds: float, alive: bool) -> None:
    """Several missed heartbeats are needed, or a process that has certainly ended."""
    content = {**this_process(), "beat": 3, **changes}
    kept = {name: value for name, value in content.items() if value is not ...}
    assert is_alive(json.dumps(kept).encode(), seconds) == alive


class TestClaimedShard:
    def test_the_claim_is_held_while_the_block_runs(self, place: Callable[[str], Store]) -> None:
        store = place("store")
        with claimed_shard(store, KEY, stop=StopSignal()) as found:
            assert found is None
            assert ClaimWatcher(store, KEY).acquire() is None
        assert not store.exists(KEY)

    def test_a_result_that_is_found_needs_no_claim(self, store: Store) -> None:
        with claimed_shard(store, KEY, stop=StopSignal(), find=lambda: "part") as found:
            assert found == "part" and not store.exists(KEY)

    def test_the_claim_is_released_after_an_error(self, store: Store) -> None:
        with pytest.raises(ValueError, match="of the merge"), claimed_shard(store, KEY, stop=StopSignal()):
            raise ValueError("of the merge")
        assert not store.exists(KEY)

    def test_without_waiting_a_claimed_shard_is_refused(self, store: Store) -> None:
        looks: list[int] = []
        with (
            claimed_shard(store, KEY, stop=StopSignal()),
            pytest.raises(ClaimedElsewhere),
            claimed_shard(store, KEY, stop=StopSignal(), wait=False, find=lambda: looks.append(1)),
        ):
            pass
        assert looks == [1]

    def test_who_waits_gets_the_result_of_the_other(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claims, "POLL_SECONDS", 0.02)
        results: list[str] = []
        looks: list[str | None] = []
        waiting = threading.Event()

        def find() -> str | None:
            looks.append(results[0] if results else None)
            if len(looks) == 2:
                waiting.set()  # now the other finishes, before or after the next attempt to take the claim
            return looks[-1]

        def other() -> None:
            with claimed_shard(store, KEY, stop=StopSignal(), find=find) as found:
                results.append(f"found {found}")

        with claimed_shard(store, KEY, stop=StopSignal()):
            thread = threading.Thread(target=other)
            thread.start()
            assert waiting.wait(10)
            results.append("part")
        thread.join(10)
        assert results == ["part", "found part"]

    def test_who_waits_takes_the_claim_when_the_other_fails(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims, "POLL_SECONDS", 0.02)
        held = ClaimWatcher(store, KEY).acquire()
        assert held is not None
        release = threading.Timer(0.2, held.release)
        release.start()
        with claimed_shard(store, KEY, stop=StopSignal()) as found:
            assert found is None and held.check() is False
        release.join()

    def test_a_stop_ends_the_wait(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claims, "POLL_SECONDS", 0.02)
        stop = StopSignal(deadline=time.monotonic() + 0.2)
        with (
            claimed_shard(store, KEY, stop=StopSignal()),
            pytest.raises(InterruptedRunError),
            claimed_shard(store, KEY, stop=stop),
        ):
            pass
