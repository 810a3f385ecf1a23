"""Claims: one at a time, taken over from the dead at once or after a while, never from the living."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eigenmerge.core.coordination import claims
from eigenmerge.core.coordination.claim_keys import claim_key
from eigenmerge.core.coordination.claims import ClaimWatcher
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
    """A claim of this very process, changed."""
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


def test_a_living_one_is_never_taken_over(store: Store, quick: None) -> None:
    watcher = ClaimWatcher(store, KEY)
    with ClaimWatcher(store, KEY).acquire():  # pyright: ignore[reportOptionalContextManager]
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5 or not watcher.has_moved:
            assert watcher.acquire() is None
            assert time.monotonic() < begun + 30
            time.sleep(0.02)


def test_a_killed_process_of_this_machine_has_none(store: Store) -> None:
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
def test_another_machines_one_is_waited_for(store: Store, quick: None, changes: dict[str, Any]) -> None:
    written(store, **changes)
    watcher = ClaimWatcher(store, KEY)
    started = time.monotonic()
    while (claim := watcher.acquire()) is None:
        time.sleep(0.02)
    claim.release()
    assert 0.4 <= time.monotonic() - started < 5


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": "0"}, {"pid": "none"}, {"pid": 2**70}], ids=str)
def test_a_process_id_that_is_not_that_process(store: Store, changes: dict[str, Any]) -> None:
    written(store, **changes)
    claim = ClaimWatcher(store, KEY).acquire()
    assert claim is not None
    claim.release()


def test_who_was_overtaken_sees_it_and_leaves_the_claim_alone(store: Store, quick: None) -> None:
    first = ClaimWatcher(store, KEY).acquire()
    assert first is not None
    store.write(KEY, json.dumps({"id": "another", "host": "h", "boot": "b", "pid": 1, "started": "1"}).encode())
    deadline = time.monotonic() + 5
    while not first.is_lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert first.is_lost
    first.release()
    assert json.loads(store.read(KEY))["id"] == "another"


def test_abandoned_it_is_anybodys_and_says_what_it_was(store: Store) -> None:
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
def test_whatever_stands_there_only_delays(store: Store, content: bytes) -> None:
    store.write(KEY, content)
    claim = ClaimWatcher(store, KEY).acquire()
    if claim is not None:
        claim.release()
    assert claim is not None or b'"host"' in content, "what is no claim at all delays nobody"


def test_many_at_once_and_one_wins(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        won = [claim for claim in pool.map(lambda _: ClaimWatcher(store, KEY).acquire(), range(8)) if claim]
    assert len(won) == 1
    won[0].release()
    assert os.listdir(Path(store.root_uri) / "claims") == []  # noqa: PTH208


def test_one_that_a_run_of_this_process_could_not_take_away_is_free_at_the_second_look(
    store: Store, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk nothing can be written into it; a notebook starts the merge again in the same process."""
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
