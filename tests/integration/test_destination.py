"""Two merges and one destination: they wait, refuse or find the work done; their files never mix."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.cache.reports import ShardReport
from eigenmerge.core.coordination.claims import ClaimWatcher
from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.errors import DestinationError, InterruptedRunError, ObjectNotFoundError
from eigenmerge.core.formats.file_names import MARKER_NAME
from eigenmerge.core.output.destination import Destination, prepare_destination
from eigenmerge.core.planning.plan import Plan
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.run import Run
from eigenmerge.core.steps.assemble import Assembled, assemble
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.merge_shard import merge_shard
from eigenmerge.core.storage.store import Store

SEVERAL_FILES = {"output": {"max_shard_size": "40KB"}}


@dataclass
class Begun:
    """A merge that has all its parts and has not been assembled."""

    run: Run
    reports: list[ShardReport]
    target: Destination

    @property
    def plan(self) -> Plan:
        return self.run.plan

    def finish(self, stop: StopSignal | None = None) -> Assembled:
        return assemble(self.run, self.reports, self.target, stop=stop)


@pytest.fixture
def begin(models: Any, tmp_path: Path) -> Callable[..., Begun]:
    def make(method: str = "average", *, overwrite: bool = False, **keys: Any) -> Begun:
        plan = make_plan(recipe_from_mapping(models.recipe(method, **keys)))
        out = str(tmp_path / "out")
        target = prepare_destination(plan, out, Store(out), overwrite=overwrite)
        run = Run(plan, Store(str(tmp_path / "store")))
        return Begun(run, [merge_shard(job) for job in run.jobs()], target)

    return make


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_the_same_recipe_finished_meanwhile(begin: Callable[..., Begun], tmp_path: Path) -> None:
    one, two = begin(**SEVERAL_FILES), begin(**SEVERAL_FILES)
    one.finish()
    before = state(tmp_path / "out")
    result = two.finish()
    assert any("another run has written the same result" in warning for warning in result.warnings)
    assert result.bytes_through == 0 and state(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["another method", "one file"])
def test_another_recipe_finished_meanwhile(begin: Callable[..., Begun], tmp_path: Path, kind: str) -> None:
    one = begin(**SEVERAL_FILES)
    two = begin("wudi_pinv", **SEVERAL_FILES) if kind == "another method" else begin()
    one.finish()
    before = state(tmp_path / "out")
    with pytest.raises(DestinationError, match="not empty"):
        two.finish()
    assert state(tmp_path / "out") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_recipe_is_being_written(
    begin: Callable[..., Begun], tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eigenmerge.core.coordination.claims.HEARTBEAT_SECONDS", 0.2)
    one, two = begin(), begin("wudi_pinv", overwrite=overwrite)
    claim = ClaimWatcher(one.target.store, MARKER_NAME, {"run_key": one.plan.run_key}).acquire()
    assert claim is not None
    try:
        with pytest.raises(DestinationError, match="another recipe's merge is being written there"):
            two.finish()
        assert {path.name for path in (tmp_path / "out").iterdir()} == {MARKER_NAME}
    finally:
        claim.abandon()
    one.finish()  # what it began it can end


def test_the_same_recipe_is_being_written(begin: Callable[..., Begun], tmp_path: Path) -> None:
    one, two = begin(), begin()
    claim = ClaimWatcher(one.target.store, MARKER_NAME, {"run_key": one.plan.run_key}).acquire()
    assert claim is not None
    results: list[Any] = []
    waiting = threading.Thread(target=lambda: results.append(two.finish()))
    waiting.start()
    time.sleep(0.5)
    assert waiting.is_alive() and {path.name for path in (tmp_path / "out").iterdir()} == {MARKER_NAME}
    claim.release()
    waiting.join(20)
    assert results and (tmp_path / "out/model.safetensors").exists()


def test_waiting_ends_with_the_stop_signal(begin: Callable[..., Begun]) -> None:
    one, two = begin(), begin()
    claim = ClaimWatcher(one.target.store, MARKER_NAME, {"run_key": one.plan.run_key}).acquire()
    assert claim is not None
    stop = StopSignal()
    threading.Timer(0.3, stop.stop, ["SIGTERM"]).start()
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        two.finish(stop)
    claim.release()


def test_after_an_error_the_marker_says_so_and_the_next_run_goes_on_at_once(
    begin: Callable[..., Begun], tmp_path: Path
) -> None:
    one = begin(**SEVERAL_FILES)
    lost = tmp_path / "store" / one.plan.shards[-1].part_key
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(ObjectNotFoundError):
        one.finish()
    marker = json.loads((tmp_path / "out" / MARKER_NAME).read_text())
    assert marker == {"run_key": one.plan.run_key}
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    lost.write_bytes(content)
    started = time.monotonic()
    begin(**SEVERAL_FILES).finish()
    assert time.monotonic() - started < 30, "nobody is waited for"
    assert not (tmp_path / "out" / MARKER_NAME).exists()
    assert (tmp_path / "out/model.safetensors.index.json").exists()


def test_at_no_moment_an_index_of_one_merge_stands_beside_files_of_another(
    begin: Callable[..., Begun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(**SEVERAL_FILES).finish()
    out = tmp_path / "out"
    old = (out / "eigenmerge_manifest.json").read_bytes()
    two = begin("wudi_pinv", overwrite=True, **SEVERAL_FILES)
    seen: list[set[str]] = []
    write = Store.write

    def watched(self: Store, key: str, data: Any) -> None:
        seen.append({path.name for path in out.iterdir()})
        write(self, key, data)

    monkeypatch.setattr(Store, "write", watched)
    two.finish()
    assert len(seen) > 3
    writing = [names for names in seen if MARKER_NAME in names]
    assert all("model.safetensors.index.json" not in names for names in writing)
    assert (out / "eigenmerge_manifest.json").read_bytes() != old
