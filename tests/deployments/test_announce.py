"""The event of a new expert: the server has received it when the call returns, and a failure is an error."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from eigenmerge.core.errors import DeployError
from eigenmerge.deployments.announce import EXPERT_REGISTERED, announce_expert, check_registered


def test_the_server_records_the_event(prefect_server: str) -> None:
    announce_expert("s3://bucket/experts", "math", api_url=prefect_server)
    wanted = {"filter": {"event": {"name": [EXPERT_REGISTERED]}}}
    deadline = time.monotonic() + 60
    while True:  # the server writes events in batches
        found = httpx.post(f"{prefect_server}/events/filter", json=wanted, timeout=30).json()["events"]
        if found:
            break
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert found[0]["resource"] == {
        "prefect.resource.id": "eigenmerge.expert.math",
        "prefect.resource.name": "math",
        "eigenmerge.registry": "s3://bucket/experts",
    }


def test_no_server() -> None:
    with pytest.raises(DeployError, match="not sent to the Prefect server at http://127"):
        announce_expert("/experts", "math", api_url="http://127.0.0.1:9/api")


def test_an_expert_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "model.safetensors").touch()
    check_registered(str(tmp_path), "math")
    with pytest.raises(DeployError, match="has no expert 'maths'; did you mean 'math'"):
        check_registered(str(tmp_path), "maths")
    with pytest.raises(DeployError, match="has no expert 'math'; none is known"):
        check_registered(str(tmp_path / "empty"), "math")
