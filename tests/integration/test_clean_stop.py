"""Ctrl-C, SIGTERM and a time limit: shards are finished or dropped whole, and the same command goes on."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .processes import num_parts, start, wait_until

FILES = ("model.safetensors", "eigenmerge_manifest.json", "README.md", "config.json")


@pytest.fixture
def calm(make_models: Any, pipeline: Any, tmp_path: Path) -> Any:
    """Models, their recipe, and what an undisturbed run makes of it."""
    models = make_models(num_experts=3, layers=6, hidden=192)
    recipe = models.write_recipe("swudi_a", keep_sums=True)
    pipeline(recipe, tmp_path / "calm", store=str(tmp_path / "calm-store"))
    return recipe


def assert_whole(store: Path) -> int:
    """Every part has its record, nothing is half-written or claimed; the number of parts."""
    parts = {path.stem for path in store.glob("parts/*.safetensors")}
    assert parts == {path.stem for path in store.glob("parts/*.json")}
    assert not list(store.rglob("*.partial")) and not list(store.glob("claims/*"))
    return len(parts)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(
    calm: Path, prefect_server: str, command: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    process = start(["merge", calm, out, "--store", store, "--workers", "2"], prefect_server)
    wait_until(lambda: num_parts(store) >= 2, 90, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    lines = said.strip().splitlines()
    assert lines[0] == "eigenmerge: stopping; finished shards are kept (interrupt again to stop at once)"
    assert lines[-1].startswith(f"eigenmerge: error: stopped by {number.name}") and "run the same command again" in said
    assert "Traceback" not in said
    finished = assert_whole(store)
    assert not list(out.glob("*")), "nothing half-written in the destination"

    again = command("merge", calm, out, "--store", store, "--json")
    assert again.code == 0, again.err
    result = json.loads(again.out)
    assert result["shards_reused"] == finished >= 2 and result["shards_done"] > 0
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


def test_a_signal_while_it_starts(calm: Path, prefect_server: str, tmp_path: Path) -> None:
    process = start(["merge", calm, tmp_path / "out", "--store", tmp_path / "store"], prefect_server)
    assert process.stderr is not None
    time.sleep(1.5)  # in the middle of the imports
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (
        process.returncode in (130, -signal.SIGTERM) and "Traceback" not in said
    )  # before main() Python is on its own
    assert not list((tmp_path / "out").glob("*"))


def test_time_limits_add_up(calm: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    """A merge in slices of a night: every slice ends by itself, the last one finishes."""
    store, out = tmp_path / "store", tmp_path / "out"
    limit, before, slices = 1.0, -1, 0
    while True:
        done = command("merge", calm, out, "--store", store, "--time-limit", str(limit), "--workers", "1")
        slices += 1
        if done.code == 0:
            break
        assert done.code == 130 and "stopped by its time limit" in done.err and "again to resume" in done.err
        finished = assert_whole(store)
        limit = limit * 2 if finished == before else limit  # a slow machine
        before = finished
        assert slices < 40 and not list(out.glob("*"))
    assert slices > 1, "the limit was never reached"
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
