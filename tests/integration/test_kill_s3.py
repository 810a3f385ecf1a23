"""SIGKILL at random moments of a merge on S3, each time followed by the same command with an empty home directory.

A moment is a number of requests to the server plus a random delay, so that kills happen during planning, computing,
writing and assembling, whatever the speed of the machine.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .s3_models import SCRIPT, Finished, ForkedCommands, S3Models, objects, upload

WORKERS = 2


class NewInterpreter:
    """The command in a new interpreter, as a user starts it."""

    def __init__(self, arguments: list[str], log: Path, prefect_server: str, home: Path) -> None:
        home.mkdir()
        self._output = home / "output"
        environment = {
            **os.environ,
            "HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": prefect_server,
            "OMP_NUM_THREADS": "1",
        }
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(log), *arguments], env=environment, stdout=output, stderr=output
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> Finished:
        return Finished(self._process.wait(), self._output.read_text())


@dataclass
class Tally:
    kills: int = 0
    finished: int = 0
    phases: Counter[str] = field(default_factory=Counter)


@dataclass
class KilledMerges:
    """Merges that are killed and started again until they finish."""

    models: S3Models
    proxy: Any
    start: Callable[[list[str], Path], Any]
    folder: Path
    seed: int
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._recipe = self.models.write_recipe("swudi_a", output={"max_shard_size": "80KB"})
        before = len(self.proxy.requests)
        finished = self._start("reference").wait()
        assert finished.code == 0, finished.output
        self.num_requests = len(self.proxy.requests) - before
        self.reference = objects(self.models.store("out-reference"))
        self.num_decompositions = self.decompositions("reference")
        assert len([name for name in self.reference if name.endswith(".safetensors")]) > 2

    def run(self, name: str, *, at_most: int) -> None:
        """Run one merge with up to `at_most` kills; check the result and the number of decompositions.

        The last kill is sent while files are assembled, because that phase is too short to be met by chance.
        """
        kills = 0
        while True:
            process = self._start(name)
            if kills < at_most:
                reached = self._in_the_reduce(name) if kills == at_most - 1 else self._after_some_requests()
                deadline = time.monotonic() + 300
                while process.is_running and not reached():
                    assert time.monotonic() < deadline, "the merge did not reach the moment of the kill"
                    time.sleep(0.002)
                time.sleep(self._random.uniform(0, 0.02))
                process.signal(signal.SIGKILL)
            finished = process.wait()
            if finished.code == 0:
                break
            assert finished.code == -signal.SIGKILL, finished.output
            kills += 1
            self.tally.phases[self._phase(name)] += 1
        self.tally.kills += kills
        self.tally.finished += 1
        assert objects(self.models.store(f"out-{name}")) == self.reference
        assert self.num_decompositions <= self.decompositions(name) <= self.num_decompositions + kills * WORKERS

    def _after_some_requests(self) -> Callable[[], bool]:
        reached = len(self.proxy.requests) + self._random.randint(1, self.num_requests // 3)
        return lambda: len(self.proxy.requests) >= reached

    def _in_the_reduce(self, name: str) -> Callable[[], bool]:
        position = len(self.proxy.requests)

        def has_started() -> bool:
            nonlocal position
            seen = self.proxy.requests[position:]
            position += len(seen)
            return any(method == "PUT" and f"/out-{name}/model" in path for method, path, _ in seen)

        return has_started

    def decompositions(self, name: str) -> int:
        return len(self._log(name).read_text().splitlines())

    def _start(self, name: str) -> Any:
        places = [f"{self.models.uri}/out-{name}", "--store", f"{self.models.uri}/store-{name}"]
        return self.start(["merge", str(self._recipe), *places, "--workers", str(WORKERS), "--json"], self._log(name))

    def _log(self, name: str) -> Path:
        return self.folder / f"decompositions-{name}"

    def _phase(self, name: str) -> str:
        """Return the phase in which the run was killed."""
        if any(self.models.store(f"out-{name}").list("")):
            return "assembling"
        parts = sum(key.endswith(".json") for key in self._keys(name, "parts"))
        return "planning" if not self._keys(name, "") else "before the first part" if not parts else "between parts"

    def _keys(self, name: str, prefix: str) -> list[str]:
        return [info.key for info in self.models.store(f"store-{name}").list(prefix)]


@pytest.fixture
def on_s3(make_models: Any, s3_root: Any, faulty_s3: Any) -> S3Models:
    """The models on S3, reached through the proxy, which records the requests."""
    proxy, _ = faulty_s3
    return upload(make_models(num_experts=3, layers=2, hidden=64), s3_root.uri, s3_root.storage_options).through(
        proxy.endpoint
    )


def test_a_merge_killed_five_times(
    on_s3: S3Models, faulty_s3: Any, forked_commands: ForkedCommands, tmp_path: Path
) -> None:
    def start(arguments: list[str], log: Path) -> Any:
        return forked_commands.start(*arguments, log=log)

    merges = KilledMerges(on_s3, faulty_s3[0], start, tmp_path, seed=1)
    merges.run("killed", at_most=5)
    assert merges.tally.kills == 5 and merges.tally.phases["assembling"] >= 1, merges.tally


@pytest.mark.soak
def test_merges_killed_fifty_times(on_s3: S3Models, faulty_s3: Any, prefect_server: str, tmp_path: Path) -> None:
    """Starts the command in a new interpreter each time."""
    numbers = iter(range(10**6))

    def start(arguments: list[str], log: Path) -> Any:
        return NewInterpreter(arguments, log, prefect_server, tmp_path / f"home-{next(numbers)}")

    merges = KilledMerges(on_s3, faulty_s3[0], start, tmp_path, seed=2)
    rounds = 0
    while merges.tally.kills < 50:
        rounds += 1
        merges.run(f"round{rounds}", at_most=12)
    print(f"\n{merges.tally}, {merges.num_requests} requests and {merges.num_decompositions} decompositions each")
    assert merges.tally.phases.keys() >= {"before the first part", "between parts", "assembling"}
