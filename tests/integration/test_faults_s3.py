"""Merges through a faulty network: temporary failures are retried with the same result, others are reported at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.cache.result import MergeResult

from ..faulty_proxy import Faults
from .s3_models import Finished, ForkedCommands, S3Models, objects


@pytest.fixture
def faulty(s3_models: S3Models, faulty_s3: Any) -> S3Models:
    """The models, reached through the proxy."""
    return s3_models.through(faulty_s3[0].endpoint)


@pytest.mark.parametrize(
    ("outage_seconds", "repetitions"), [(1.0, 1), pytest.param(10.0, 5, marks=pytest.mark.soak)], ids=["1 s", "10 s"]
)
def test_temporary_failures_do_not_change_the_result(
    s3_models: S3Models,
    faulty: S3Models,
    faulty_s3: Any,
    forked_commands: ForkedCommands,
    pipeline: Callable[..., MergeResult],
    outage_seconds: float,
    repetitions: int,
) -> None:
    """5% errors, 5% short bodies, 2% resets, 2% lost responses, 5% slow bodies, and an outage during the merge."""
    proxy, _ = faulty_s3
    reference_recipe, recipe = s3_models.write_recipe(name="reference.yml"), faulty.write_recipe()
    reference = pipeline(reference_recipe, f"{faulty.uri}/reference", f"{faulty.uri}/alone")
    expected = objects(s3_models.store("reference"))
    for number in range(repetitions):
        faults = Faults(errors=0.05, short_bodies=0.05, resets=0.02, lost_answers=0.02, slow_bodies=0.05)
        proxy.faults, before = faults, len(proxy.requests)
        out, store = f"{faulty.uri}/out{number}", f"{faulty.uri}/store{number}"
        run = forked_commands.start("merge", recipe, out, "--store", store, "--json")
        while run.is_running and len(proxy.requests) - before < 150:
            time.sleep(0.01)
        assert run.is_running, "the merge ended before the outage"
        faults.outage_until = time.monotonic() + outage_seconds
        finished = run.wait()
        proxy.faults = Faults()
        assert finished.code == 0, finished.output
        assert len(finished.output.splitlines()) == 1, "only the result is printed"
        assert objects(s3_models.store(f"out{number}")) == expected
        assert finished.json["decompositions_computed"] == reference.decompositions_computed
    assert proxy.counts.keys() >= {"error", "short", "reset", "lost", "slow"}, proxy.counts


Run = Callable[..., Finished]


@pytest.fixture
def merge(faulty: S3Models, forked_commands: ForkedCommands) -> Run:
    def run(*options: str, **keys: Any) -> Finished:
        recipe = faulty.write_recipe(**keys)
        store = [] if "--store" in options else ["--store", f"{faulty.uri}/store"]
        return forked_commands.run("merge", recipe, f"{faulty.uri}/out", *store, *options)

    return run


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("expert1", ["permission denied", "expert1"]),
        ("store", ["permission denied", "/store/"]),
        ("out", ["permission denied", "/out"]),
    ],
)
def test_a_denied_request_is_reported_at_once(merge: Run, faulty_s3: Any, what: str, words: list[str]) -> None:
    proxy, _ = faulty_s3
    proxy.faults.decide = lambda method, path: "denied" if f"/{what}/" in path or f"%2F{what}" in path else None
    started = time.monotonic()
    assert_refused_at_once(merge(), proxy, started, *words)


def test_a_missing_model(merge: Run, faulty: S3Models, faulty_s3: Any) -> None:
    started = time.monotonic()
    missing = f"{faulty.uri}/nowhere"
    assert_refused_at_once(merge(base_model=missing), faulty_s3[0], started, "no such model", missing)


@pytest.mark.parametrize("place", ["base_model", "--store", "out"])
def test_a_missing_bucket(
    merge: Run, faulty: S3Models, faulty_s3: Any, forked_commands: ForkedCommands, place: str
) -> None:
    started = time.monotonic()
    missing = "s3://no-such-bucket-here/prefix"
    if place == "out":
        finished = forked_commands.run("merge", faulty.write_recipe(), missing, "--store", f"{faulty.uri}/store")
    else:
        finished = merge("--store", missing) if place == "--store" else merge(base_model=missing)
    assert_refused_at_once(finished, faulty_s3[0], started, "no such bucket", "no-such-bucket-here")


def assert_refused_at_once(finished: Finished, proxy: Any, started: float, *words: str) -> None:
    """Check for one line that names the object, and that denied requests were not repeated."""
    lines = finished.output.splitlines()
    assert finished.code == 1 and len(lines) == 1, finished.output
    assert lines[0].startswith("eigenmerge: error: ")
    for word in words:
        assert word in lines[0], lines[0]
    denied = proxy.counts.get("denied", 0)
    assert denied <= 4, "parallel requests may be refused together, none is repeated"
    assert time.monotonic() - started < 60


@pytest.mark.soak  # takes a minute
def test_an_object_that_stays_unreachable_is_named(merge: Run, faulty_s3: Any) -> None:
    """A server that stays unavailable: a limited number of attempts, then one line that explains how to resume."""
    proxy, _ = faulty_s3
    proxy.faults.decide = lambda method, path: "error" if "expert1/model.safetensors" in path else None
    finished = merge()
    lines = [line for line in finished.output.splitlines() if not line.startswith("eigenmerge merge: ")]
    assert finished.code == 1 and len(lines) == 1, finished.output
    assert "expert1/model.safetensors failed after" in lines[0] and "resume" in lines[0]
    assert 3 <= proxy.counts["error"] <= 20
