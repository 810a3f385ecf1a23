"""Ctrl-C, SIGTERM and time limits: shards are finished or discarded, and the same command resumes the run."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from .processes import END_SECONDS, START_SECONDS, last_shard_claimed, num_parts, start, wait_until

pytestmark = pytest.mark.timeout(900)

FILES = ("model.safetensors", "eigenmerge_manifest.json", "eigenmerge_report.html", "README.md", "config.json")


@pytest.fixture
def reference(make_models: Any, pipeline: Any, tmp_path: Path) -> Any:
    """A recipe; an uninterrupted run has written its result to tmp_path/reference."""
    models = make_models(num_experts=3, layers=4, hidden=192)
    recipe = models.write_recipe("swudi_a", keep_sums=True)
    pipeline(recipe, tmp_path / "reference", store=str(tmp_path / "reference-store"))
    return recipe


def check_complete(store: Path) -> int:
    """Check that every part has its record and that no file is partial or claimed; return the number of parts."""
    parts = {path.stem for path in store.glob("parts/*.safetensors")}
    assert parts == {path.stem for path in store.glob("parts/*.json")}
    assert not list(store.rglob("*.partial")) and not list(store.glob("claims/*"))
    return len(parts)


@pytest.mark.parametrize(("number", "embedded"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_signal_stops_the_run_cleanly(
    reference: Path,
    prefect_server: str,
    make_prefect_home: Callable[[Path], Path],
    command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    embedded: bool,
) -> None:
    """Also while the embedded server starts, when shards are computed already."""
    store, out = tmp_path / "store", tmp_path / "out"
    with last_shard_claimed(reference, store), monkeypatch.context() as environment:
        if embedded:
            environment.setenv("PREFECT_HOME", str(make_prefect_home(tmp_path / "home")))
        arguments = ["merge", reference, out, "--store", store, "--workers", "2"]
        process = start(arguments, "" if embedded else prefect_server)
        wait_until(lambda: num_parts(store) >= 2, START_SECONDS, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 130, errors
    lines = errors.strip().splitlines()
    assert lines[0] == "eigenmerge: stopping; finished shards are kept (interrupt again to stop at once)"
    assert (
        lines[-1].startswith(f"eigenmerge: error: stopped by {number.name}") and "run the same command again" in errors
    )
    assert "Traceback" not in errors
    finished = check_complete(store)
    assert not list(out.glob("*")), "the destination is empty"

    again = command("merge", reference, out, "--store", store, "--json")
    assert again.code == 0, again.err
    result = json.loads(again.out)
    assert result["shards_reused"] == finished >= 2 and result["shards_done"] > 0
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()


def test_a_signal_during_the_imports(reference: Path, prefect_server: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with last_shard_claimed(reference, store):
        process = start(["merge", reference, tmp_path / "out", "--store", store], prefect_server)
        time.sleep(1.5)  # during the imports
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=END_SECONDS)
    assert (
        process.returncode in (130, -signal.SIGTERM) and "Traceback" not in errors
    )  # before main() Python handles the signal
    assert not list((tmp_path / "out").glob("*"))


def test_repeated_time_limits_complete_the_merge(reference: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    """Each run with a time limit does a part of the work, and the last one finishes."""
    store, out = tmp_path / "store", tmp_path / "out"
    limit, before, runs = 1.0, -1, 0
    while True:
        with nullcontext() if runs else last_shard_claimed(reference, store):  # the first run cannot finish
            done = command("merge", reference, out, "--store", store, "--time-limit", str(limit), "--workers", "1")
        runs += 1
        if done.code == 0:
            break
        assert done.code == 130 and "stopped by its time limit" in done.err and "again to resume" in done.err
        finished = check_complete(store)
        limit = limit * 2 if finished == before else limit  # a slow machine
        before = finished
        assert runs < 40 and not list(out.glob("*"))
    assert runs > 1, "the limit was never reached"
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()
