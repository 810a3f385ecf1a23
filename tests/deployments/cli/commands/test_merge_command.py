"""Summary and signals of `eigenmerge merge`."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator

import pytest

from eigenmerge.core.cache.result import MergeResult
from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.deployments.cli.commands.merge_command import stop_on_signals, summary

RESULT = MergeResult(
    destination="out",
    run_key="0" * 64,
    files=("model.safetensors",),
    num_tensors=13,
    num_experts=1,
    method="swudi_a",
    shards_done=4,
    shards_reused=9,
    decompositions_computed=4,
    decompositions_reused=8,
    bytes_read=295_000,
    kept_bytes_read=0,
    bytes_written=77_900,
    bytes_through_reduce=4096,
    seconds=125.0,
    warnings=(),
    truncation_error=None,
    truncated_tensor=None,
)


def test_the_summary() -> None:
    assert summary(RESULT, 125.0) == [
        "Merged 1 expert, 13 tensors, with swudi_a in 2 min 05 s",
        "  output: out (77.9 KB; report in eigenmerge_report.html)",
        "  shards: 4 computed, 9 reused; decompositions: 4 computed, 8 reused",
        "  read: 295 KB",
    ]


def test_warnings_sums_and_truncation() -> None:
    changed = dataclasses.replace(
        RESULT, warnings=("first", "second"), kept_bytes_read=10**6, truncation_error=0.031, truncated_tensor="q"
    )
    lines = summary(changed, 1.0)
    assert lines[:2] == ["warning: first", "warning: second"]
    assert lines[-2:] == [
        "  read: 295 KB and 1 MB of kept sums",
        "  adapter: largest error of its rank: 3.10% of the merged delta of q",
    ]
    exact = summary(dataclasses.replace(RESULT, truncation_error=1e-9, truncated_tensor="q"), 1.0)
    assert exact[-1] == "  adapter: its rank represents the merged deltas exactly"


@pytest.fixture
def _keep_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_keep_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_the_run(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopSignal()
    stop_on_signals(stop)
    os.kill(os.getpid(), number)
    assert stop.is_set
    assert capsys.readouterr().err.startswith("eigenmerge: stopping; finished shards are kept")
    assert signal.getsignal(number) == signal.SIG_DFL, "the second signal ends the process"
