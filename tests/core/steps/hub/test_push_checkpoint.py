"""Pushing checkpoints to a stand-in for the Hub, which is a process of its own."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, DestinationError, RecipeError, StoreError
from eigenmerge.core.steps.hub.push_checkpoint import Pushed, prepare_push, push_checkpoint
from eigenmerge.core.storage.store import Store

from ....conftest import free_port
from ...output.examples import OTHER_KEY, Checkpoint, make_checkpoint, small_plan, weight

MANIFEST = "eigenmerge_manifest.json"
CARD = b"---\nlicense: mit\n---\n# Merged\n"


@dataclass
class Hub:
    url: str
    name: str  # of a repository that no other test uses

    def options(self, token: str = "writer") -> dict[str, Any]:
        return {"hf": {"endpoint": self.url, "token": token}}

    def ask(self, **state: Any) -> dict[str, Any]:
        data = json.dumps(state).encode() if state else None
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/test/state", data)) as answer:
            return json.loads(answer.read())

    @property
    def repository(self) -> dict[str, Any]:
        return self.ask()["repositories"][self.name]

    @property
    def files(self) -> dict[str, str]:
        """Name to sha256, without what the Hub itself creates."""
        return {name: one for name, one in self.repository["files"].items() if name != ".gitattributes"}

    def edit(self, files: dict[str, bytes], *, create: bool = False) -> None:
        """Write files as somebody else would."""
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(endpoint=self.url, token="writer")
        if create:
            api.create_repo(self.name, private=True)
        api.create_commit(self.name, [CommitOperationAdd(n, d) for n, d in files.items()], commit_message="edit")


@pytest.fixture
def hub(hub_endpoint: str, no_hub_login: None, request: pytest.FixtureRequest) -> Hub:
    found = Hub(hub_endpoint, f"me/{hashlib.sha1(request.node.name.encode()).hexdigest()[:12]}")
    found.ask(fail_after=None)
    return found


def write(store: Store, checkpoint: Checkpoint | None = None, card: bytes = CARD) -> dict[str, str]:
    """Write a finished checkpoint, and return name to sha256."""
    found = checkpoint or make_checkpoint(small_plan())
    found.write(store, side_files={"README.md": card, "config.json": b'{"a": 1}'})
    return {info.key: hashlib.sha256(store.read(info.key)).hexdigest() for info in store.list("")}


@pytest.fixture(params=["local", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/{request.node.name}")


@pytest.fixture
def push(hub: Hub, out: Store) -> Callable[..., Pushed]:
    return lambda token="writer", **keys: push_checkpoint(out, hub.name, hub.options(token), **keys)


def test_a_new_repository_is_private_and_has_one_commit(hub: Hub, out: Store, push: Any) -> None:
    expected = write(out)
    sent: list[str] = []
    done = push(on_file=lambda name, size: sent.append(name))
    assert hub.files == expected and sorted(sent) == sorted(expected)
    assert hub.repository["private"] and hub.repository["num_commits"] == 2, "the first is the Hub's"
    assert (done.num_files, done.url) == (len(expected), f"{hub.url}/{hub.name}") and hub.url in done.commit_url
    again = push()
    assert (again.num_files, again.commit_url) == (0, "") and hub.repository["num_commits"] == 2


def test_a_public_repository(hub: Hub, out: Store, push: Any) -> None:
    write(out)
    push(public=True)
    assert not hub.repository["private"]
    with pytest.raises(DestinationError, match="the repository is public; pass --public"):
        push()


def test_an_interrupted_push_sends_only_what_is_missing(hub: Hub, out: Store, push: Any) -> None:
    expected = write(out)
    before = len(hub.ask()["uploads"])
    hub.ask(fail_after=before + 1)
    with pytest.raises(DestinationError, match=f"{hub.name}: the token may not write there .storage is away"):
        push()
    hub.ask(fail_after=None)
    assert hub.files == {}, "nothing is visible before the commit"
    push()
    assert hub.files == expected
    uploads = hub.ask()["uploads"][before:]
    assert len(uploads) == len(set(uploads)) == 2, "the first file was not sent again"


def test_another_merge_replaces_the_earlier_one(hub: Hub, out: Store, push: Any, tmp_path: Path) -> None:
    write(out)
    push()
    hub.edit({"LICENSE": b"mine", "images/plot.png": b"mine"})
    other = Store(str(tmp_path / "other"))
    plan = small_plan((([weight("a.weight")]),), run_key=OTHER_KEY)
    expected = write(other, make_checkpoint(plan))
    done = push_checkpoint(other, hub.name, hub.options())
    removed = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert set(done.removed) == removed
    mine = hashlib.sha256(b"mine").hexdigest()
    assert hub.files == {**expected, "LICENSE": mine, "images/plot.png": mine}, "files of the user stay"


@pytest.mark.parametrize("name", ["README.md", "config.json", "model-00001-of-00002.safetensors"])
def test_what_was_edited_on_the_hub_is_not_replaced(hub: Hub, out: Store, push: Any, name: str) -> None:
    expected = write(out)
    push()
    hub.edit({name: b"edited"})
    with pytest.raises(DestinationError, match=f"{name} was edited there"):
        push()
    assert hub.files[name] == hashlib.sha256(b"edited").hexdigest()
    push(overwrite=True)
    assert hub.files == expected


def test_a_card_that_was_edited_here(hub: Hub, out: Store, push: Any) -> None:
    write(out)
    push()
    out.write("README.md", CARD + b"More.\n")
    push()
    assert hub.files["README.md"] == hashlib.sha256(CARD + b"More.\n").hexdigest()
    assert push().commit_url == "", "it differs from the manifest, and is what was pushed"


def test_files_of_others(hub: Hub, out: Store, push: Any) -> None:
    write(out)
    hub.edit({"model.safetensors": b"another model", "config.json": b"{}"}, create=True)
    for attempt in (push, lambda: prepare_push(hub.name, hub.options())):
        with pytest.raises(DestinationError, match=r"has 2 files, e.g. 'config.json', and no eigenmerge_manifest.json"):
            attempt()


def test_weights_beside_an_earlier_merge(hub: Hub, out: Store, push: Any) -> None:
    write(out)
    push()
    hub.edit({"pytorch_model.bin": b"x"})
    with pytest.raises(DestinationError, match=r"has 'pytorch_model.bin', which is not part of the merge"):
        push()


@pytest.mark.parametrize(
    ("token", "name", "line"),
    [
        ("wrong", "me/x", "me/x: the Hub refuses the token"),
        ("reader", "me/x", "me/x: the token can only read"),
        ("writer", "stranger/x", "stranger/x: the token may not write there .You don't have the rights"),
        ("", "me/x", "me/x: there is no token for the Hub; run `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_access_is_checked_before_the_work(hub: Hub, token: str, name: str, line: str) -> None:
    with pytest.raises(DestinationError, match=line) as found:
        prepare_push(name, hub.options(token))
    assert token == "" or token not in str(found.value).replace("Hub refuses the token", "")
    assert not [one for one in hub.ask()["repositories"] if one in ("me/x", "stranger/x")]


@pytest.mark.parametrize("name", ["name", "a/b/c", "/models/x", "hf://me/x", "me/x@main", ""])
def test_names_of_no_repository(hub: Hub, name: str) -> None:
    with pytest.raises(RecipeError, match="is no name of a repository; expected owner/name"):
        prepare_push(name, hub.options())


def test_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    away = {"hf": {"endpoint": f"http://127.0.0.1:{free_port()}", "token": "writer"}}
    with pytest.raises(StoreError, match=r"checking the token at http://127.0.0.1:\d+ failed after"):
        prepare_push("me/x", away)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set"):
        prepare_push("me/x", hub.options())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda out: out.write(".eigenmerge-incomplete.json", b"{}"), "the merge has not finished"),
        (lambda out: out.delete([MANIFEST]), f"has no {MANIFEST}"),
        (lambda out: out.delete(["config.json"]), "config.json is missing"),
        (lambda out: out.write("config.json", b"{}"), "config.json was changed after the merge"),
        (lambda out: out.write("model-00001-of-00002.safetensors", b"x"), "has 1 bytes, expected "),
        (lambda out: out.write("README.md", b"---\nbase_model: /models/x\n---\n"), "'/models/x' is no id of the Hub"),
    ],
)
def test_a_checkpoint_that_is_not_finished_or_was_changed(
    hub: Hub, out: Store, push: Any, change: Any, line: str
) -> None:
    write(out)
    change(out)
    with pytest.raises(CheckpointError, match=line):
        push()
    assert hub.name not in hub.ask()["repositories"]


def test_damaged_weights_are_not_pushed(hub: Hub, out: Store, push: Any) -> None:
    write(out)
    data = bytearray(out.read("model-00002-of-00002.safetensors"))
    data[-1] ^= 1
    out.write("model-00002-of-00002.safetensors", data)
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: its sha256 differs"):
        push()
    assert hub.files == {}


def test_files_that_are_no_part_of_the_merge_stay_here(hub: Hub, out: Store, push: Any) -> None:
    expected = write(out)
    out.write("notes.txt", b"private")
    out.write("eigenmerge_report.html", b"<html>")
    done = push()
    assert done.left_out == ("notes.txt",)
    assert hub.files == {**expected, "eigenmerge_report.html": hashlib.sha256(b"<html>").hexdigest()}


def test_a_change_at_the_same_time_is_noticed(hub: Hub, out: Store, push: Any) -> None:
    write(out)
    push()
    changed = replace(make_checkpoint(small_plan(run_key=OTHER_KEY)))
    write(out, changed, CARD + b"x")
    with pytest.raises(DestinationError, match="the repository was changed at the same time"):
        push(on_file=lambda name, size: hub.edit({f"other-{name}": b"x"}))
