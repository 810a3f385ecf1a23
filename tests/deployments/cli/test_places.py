"""Addresses on the command line: credentials in them are refused unseen, and a server that is down is told at once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ...conftest import free_port, s3_options

Cli = Callable[..., tuple[int, str]]

# A secret with a slash: libraries take the part before it for the bucket and show that in their errors.
SECRET_ADDRESS = "s3://PLANTED:plan/ted@secret@bucket/place"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process; return the exit code and all that it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        from eigenmerge.deployments.cli.app import main

        monkeypatch.setattr(sys, "argv", ["eigenmerge", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        return int(stop.value.code or 0), found.out + found.err

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        "cache ls --store ADDRESS",
        "compare . ADDRESS",
        "doctor --store ADDRESS --no-server",
        "explain ADDRESS x",
        "extract . ADDRESS out --rank 1",
        "init . ADDRESS --base . --output -",
        "inspect ADDRESS",
        "merge ADDRESS out",
        "nightly ADDRESS registry publish",
        "plan ADDRESS",
        "push ADDRESS me/model",
        "report ADDRESS",
        "report . --store ADDRESS",
        "verify ADDRESS",
        "verify . --store ADDRESS",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_shown(cli: Cli, arguments: str) -> None:
    code, shown = cli(*[SECRET_ADDRESS if word == "ADDRESS" else word for word in arguments.split()])
    assert code in (1, 2) and "contains credentials" in shown
    assert not any(part in shown for part in ("PLANTED", "plan/", "ted@"))


@pytest.mark.parametrize("command", ["cache ls", "report s3://bucket/out"])
def test_a_server_that_is_down_is_told_after_seconds(cli: Cli, tmp_path: Path, command: str) -> None:
    recipe = {
        "merge_method": "average",
        "base_model": "base",
        "models": ["a", "b"],
        "store": "s3://bucket/store",
        "storage_options": s3_options(f"http://127.0.0.1:{free_port()}"),
    }
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    begun = time.monotonic()
    code, shown = cli(*command.split(), "--recipe", str(tmp_path / "recipe.yml"))
    assert code == 1 and "connecting to s3://bucket at http://127.0.0.1" in shown and "after 3 attempts" in shown
    assert time.monotonic() - begun < 20  # as long as a silent server is waited for; without the check a minute


def test_commands_reach_servers_on_this_machine_past_a_proxy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "example.org")
    cli("methods", "no-such-method")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "example.org,127.0.0.1,localhost,::1"
