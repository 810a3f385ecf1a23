"""The destination of a merge: when it may be written, who may write it, and what is removed before."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from eigenmerge.core.coordination import claims
from eigenmerge.core.coordination.claims import Claim, ClaimWatcher
from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.errors import DestinationError, InterruptedRunError, StoreError
from eigenmerge.core.formats.file_names import INDEX_NAME, MANIFEST_NAME, MARKER_NAME
from eigenmerge.core.output.destination import Destination, clear_for_writing, prepare_destination, take_destination
from eigenmerge.core.planning.plan import Plan, SideFile
from eigenmerge.core.storage.store import Store

from .examples import OTHER_KEY, RUN_KEY, make_checkpoint, model, norm, small_plan

PLAN = small_plan()
OTHER = small_plan(run_key=OTHER_KEY)
ONE_FILE = small_plan([[norm("z")]])
FIRST_FILE = PLAN.files[0].name


def keys_in(store: Store) -> set[str]:
    return {info.key for info in store.list("")}


def mark(store: Store, run_key: str = RUN_KEY) -> None:
    """Leave the marker of a merge that was ended by an error."""
    store.write(MARKER_NAME, json.dumps({"run_key": run_key}).encode())


def prepare(store: Store, plan: Plan = PLAN, *, overwrite: bool = False) -> Destination:
    return prepare_destination(plan, "the destination", store, overwrite=overwrite)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


class TestPrepare:
    """The check before any weight is read."""

    def test_an_empty_destination_is_accepted_and_stays_empty(self, place: Callable[[str], Store]) -> None:
        store = place("out")
        found = prepare(store)
        assert found.store == store and not found.overwrite
        assert keys_in(store) == set()

    def test_foreign_files_are_refused_unless_overwritten(self, place: Callable[[str], Store]) -> None:
        store = place("out")
        store.write("notes.txt", b"mine")
        with pytest.raises(DestinationError, match=r"the destination: is not empty \(1 file, e\.g\. 'notes\.txt'\)"):
            prepare(store)
        assert prepare(store, overwrite=True).overwrite
        assert store.read("notes.txt") == b"mine"

    def test_an_unfinished_run_of_the_same_plan_is_resumed(self, store: Store) -> None:
        store.write(FIRST_FILE, b"half")
        mark(store)
        assert prepare(store).store == store
        assert keys_in(store) == {FIRST_FILE, MARKER_NAME}

    def test_an_unfinished_run_of_another_plan_is_refused(self, store: Store) -> None:
        mark(store, OTHER_KEY)
        with pytest.raises(DestinationError, match="an unfinished merge of another recipe"):
            prepare(store)
        prepare(store, overwrite=True)

    def test_the_finished_result_is_complete_for_its_own_recipe_only(self, store: Store) -> None:
        make_checkpoint(PLAN).write(store)
        before = keys_in(store)
        assert prepare(store).is_complete and not prepare(store, overwrite=True).is_complete
        assert keys_in(store) == before
        with pytest.raises(DestinationError, match=rf"is not empty \(run {PLAN.run_key[:12]}, of another recipe, "):
            prepare(store, OTHER)

    @pytest.mark.parametrize("name", [MARKER_NAME, MANIFEST_NAME])
    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run_key": 1}', b"\xff\xfe"])
    def test_a_damaged_marker_or_manifest_belongs_to_no_run(self, store: Store, name: str, content: bytes) -> None:
        store.write(name, content)
        with pytest.raises(DestinationError, match="is not empty"):
            prepare(store)

    def test_the_probe_of_another_run_is_no_content(self, store: Store) -> None:
        store.write(".eigenmerge-probe-0123", b"")
        prepare(store)

    @pytest.mark.parametrize("source", ["", "/expert", "/a/b"])
    def test_an_input_model_in_the_destination_is_refused(self, store: Store, source: str) -> None:
        expert = model("org/a", store.root_uri + source)
        plan = replace(PLAN, experts=(expert,))
        with pytest.raises(DestinationError, match="input model 'org/a'"):
            prepare(store, plan, overwrite=True)

    def test_a_destination_in_an_input_model_is_refused(self, store: Store, tmp_path: Path) -> None:
        plan = replace(PLAN, base=model("org/base", str(tmp_path) + "/"))
        with pytest.raises(DestinationError, match="input model 'org/base'"):
            prepare(store, plan)

    def test_a_sibling_with_a_longer_name_is_not_an_input(self, store: Store) -> None:
        prepare(store, replace(PLAN, base=model("org/base", store.root_uri + "-base")))

    def test_a_file_in_place_of_the_directory_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(StoreError):
            prepare(Store(str(tmp_path / "file")))
        with pytest.raises(StoreError):
            prepare(Store(str(tmp_path / "file/out")))


def take(store: Store, plan: Plan = PLAN, *, overwrite: bool = False, stop: StopSignal | None = None) -> Claim | None:
    return take_destination(Destination("the destination", store, overwrite), plan, stop)


def hold(store: Store, run_key: str = RUN_KEY) -> Claim:
    """Hold the destination as another run of this process does."""
    claim = ClaimWatcher(store, MARKER_NAME, {"run_key": run_key}).acquire()
    assert claim is not None
    return claim


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll and refresh claims often."""
    monkeypatch.setattr("eigenmerge.core.output.destination.POLL_SECONDS", 0.02)
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)


class TestTake:
    """The claim to write the destination."""

    def test_the_marker_names_the_plan_until_the_release(self, place: Callable[[str], Store]) -> None:
        store = place("out")
        claim = take(store)
        assert claim is not None
        assert keys_in(store) == {MARKER_NAME} and json.loads(store.read(MARKER_NAME))["run_key"] == RUN_KEY
        claim.release()
        assert keys_in(store) == set()

    def test_after_an_error_the_next_run_takes_over_at_once(self, store: Store) -> None:
        first = take(store)
        assert first is not None
        store.write(FIRST_FILE, b"half")
        first.abandon()
        assert json.loads(store.read(MARKER_NAME))["run_key"] == RUN_KEY
        started = time.monotonic()
        second = take(store)
        assert second is not None and time.monotonic() - started < 10  # a live claim is watched for 60 s
        second.release()

    def test_the_finished_result_of_another_run_is_used(self, place: Callable[[str], Store]) -> None:
        store = place("out")
        make_checkpoint(PLAN).write(store)
        assert take(store) is None
        assert MARKER_NAME not in keys_in(store)

    @pytest.mark.parametrize("missing", [FIRST_FILE, INDEX_NAME, MANIFEST_NAME])
    def test_an_incomplete_result_is_not_used(self, store: Store, missing: str) -> None:
        make_checkpoint(PLAN).write(store)
        store.delete([missing])
        with pytest.raises(DestinationError):
            take(store)

    def test_a_file_of_another_size_is_not_used(self, store: Store) -> None:
        make_checkpoint(PLAN).write(store)
        store.write(FIRST_FILE, b"short")
        with pytest.raises(DestinationError):
            take(store)

    def test_one_file_needs_no_index(self, store: Store) -> None:
        make_checkpoint(ONE_FILE).write(store)
        assert not store.exists(INDEX_NAME)
        assert take(store, ONE_FILE) is None

    def test_another_result_is_refused_unless_overwritten(self, store: Store) -> None:
        make_checkpoint(PLAN).write(store)
        with pytest.raises(DestinationError, match="is not empty"):
            take(store, OTHER)
        before = keys_in(store)
        claim = take(store, OTHER, overwrite=True)
        assert claim is not None and keys_in(store) == before | {MARKER_NAME}
        claim.release()

    def test_a_marker_of_another_recipe_is_refused_unless_overwritten(self, store: Store) -> None:
        mark(store, OTHER_KEY)
        with pytest.raises(DestinationError, match="another recipe's merge is being written there"):
            take(store)
        claim = take(store, overwrite=True)
        assert claim is not None and json.loads(store.read(MARKER_NAME))["run_key"] == RUN_KEY
        claim.release()

    def test_a_damaged_marker_is_refused_unless_overwritten(self, store: Store) -> None:
        store.write(MARKER_NAME, b"{")
        with pytest.raises(DestinationError):
            take(store)
        assert store.read(MARKER_NAME) == b"{"
        claim = take(store, overwrite=True)
        assert claim is not None
        claim.release()

    @pytest.mark.usefixtures("fast")
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_an_active_merge_of_another_recipe_is_never_overwritten(self, store: Store, overwrite: bool) -> None:
        other = hold(store, OTHER_KEY)
        with pytest.raises(DestinationError, match="another recipe's merge is being written there"):
            take(store, overwrite=overwrite)
        assert keys_in(store) == {MARKER_NAME} and other.check()
        other.release()

    @pytest.mark.usefixtures("fast")
    def test_an_active_merge_of_the_same_recipe_is_waited_for(self, store: Store) -> None:
        other = hold(store)
        found: list[Claim | None] = []
        waiting = threading.Thread(target=lambda: found.append(take(store)))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        make_checkpoint(PLAN).write(store)
        other.release()
        waiting.join(10)
        assert found == [None], "the other run has written the result"

    @pytest.mark.usefixtures("fast")
    def test_waiting_ends_with_the_stop_signal(self, store: Store) -> None:
        other = hold(store)
        stop = StopSignal()
        timer = threading.Timer(0.1, stop.stop, ["SIGTERM"])
        timer.start()
        with pytest.raises(InterruptedRunError, match="SIGTERM"):
            take(store, stop=stop)
        assert other.check()
        other.release()


class TestClear:
    """What is removed before the first file is written."""

    def write_all(self, store: Store, names: Iterable[str]) -> None:
        for name in names:
            store.write(name, b"x")

    def test_files_of_other_checkpoints_are_removed_and_others_stay(self, place: Callable[[str], Store]) -> None:
        store = place("out")
        ours = [
            "model.safetensors",
            "model-00001-of-00009.safetensors",
            "adapter_model.safetensors",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            INDEX_NAME,
            MANIFEST_NAME,
            "config.json",
            "adapter_config.json",
            ".eigenmerge-probe-0123",
        ]
        ours += ["tokenizer.model", FIRST_FILE]
        foreign = ["notes.txt", "my-model.safetensors", "tokenizer.json", "sub/model.safetensors"]
        self.write_all(store, [*ours, *foreign])
        store.write(MARKER_NAME, json.dumps({"run_key": RUN_KEY, "files": ours}).encode())
        clear_for_writing(store, PLAN)
        assert keys_in(store) == {*foreign, FIRST_FILE, MARKER_NAME}

    def test_indices_are_removed_before_any_other_file(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        make_checkpoint(small_plan([[norm("a")]], [[norm("b")]], [[norm("c")]], run_key=OTHER_KEY)).write(store)
        remaining: list[set[str]] = []
        delete = Store.delete

        def watched(self: Store, keys: Iterable[str]) -> None:
            delete(self, keys)
            remaining.append(keys_in(store))

        monkeypatch.setattr(Store, "delete", watched)
        clear_for_writing(store, PLAN)
        assert INDEX_NAME not in remaining[0] and len(remaining[0]) == 4, "three weight files and the manifest"
        assert remaining[-1] == set()

    def test_a_result_of_the_same_plan_stays_complete(self, store: Store) -> None:
        plan = replace(PLAN, side_files=(SideFile("config.json", None, b"{}"),))
        make_checkpoint(plan).write(store, side_files={"config.json": b"{}"})
        before = keys_in(store)
        clear_for_writing(store, plan)
        assert keys_in(store) == before

    def test_an_index_beside_one_file_is_removed(self, store: Store) -> None:
        make_checkpoint(ONE_FILE).write(store)
        store.write(INDEX_NAME, b"{}")
        mark(store)
        clear_for_writing(store, ONE_FILE)
        assert keys_in(store) == {"model.safetensors", MANIFEST_NAME, MARKER_NAME}
