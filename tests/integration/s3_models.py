"""Models on S3, and commands in processes that are forked from one which has imported everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from eigenmerge.core.storage.store import Store

SCRIPT = Path(__file__).with_name("counted_command.py")


@dataclass(frozen=True)
class S3Models:
    """A base and experts below one prefix, and a local folder for recipes."""

    uri: str
    options: Mapping[str, object]
    num_experts: int
    folder: Path

    def store(self, name: str) -> Store:
        return Store(f"{self.uri}/{name}", self.options)

    def recipe(self, method: str = "swudi_a", **keys: Any) -> dict[str, Any]:
        return {
            "merge_method": method,
            "base_model": f"{self.uri}/base",
            "models": [{"model": f"{self.uri}/expert{index}"} for index in range(self.num_experts)],
            "storage_options": dict(self.options),
            **keys,
        }

    def write_recipe(self, method: str = "swudi_a", name: str = "s3-recipe.yml", **keys: Any) -> Path:
        path = self.folder / name
        content = {key: value for key, value in self.recipe(method, **keys).items() if value is not None}
        path.write_text(yaml.safe_dump(content))
        return path

    def through(self, endpoint: str) -> S3Models:
        """Return the same models, reached through another endpoint such as that of a proxy."""
        return S3Models(self.uri, {**self.options, "endpoint_url": endpoint}, self.num_experts, self.folder)


def upload(models: Any, uri: str, options: Mapping[str, object]) -> S3Models:
    """Copy local models (small_models.Models) to S3."""
    for name, folder in [("base", models.base), *((f"expert{i}", path) for i, path in enumerate(models.experts))]:
        target = Store(f"{uri}/{name}", options)
        for path in folder.iterdir():
            target.write(path.name, path.read_bytes())
    return S3Models(uri, options, len(models.experts), models.root)


def objects(store: Store) -> dict[str, bytes]:
    """Return the content of every object in a store."""
    return {info.key: store.read(info.key) for info in store.list("")}


@dataclass(frozen=True)
class Finished:
    code: int
    output: str

    @property
    def json(self) -> dict[str, Any]:
        """The result, which `--json` prints on the last line."""
        return json.loads(self.output.splitlines()[-1])


class Started:
    """A command that runs in a forked process."""

    def __init__(self, commands: ForkedCommands, pid: int, output: Path) -> None:
        self._commands, self.pid, self._output = commands, pid, output

    @property
    def is_running(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """Send a signal. An ended process stays a zombie until `wait`, so its id is not reused."""
        os.kill(self.pid, number)

    def wait(self) -> Finished:
        code = int(self._commands.ask({"wait": self.pid}))
        lines = self._output.read_text().splitlines(keepends=True)
        # A busy machine takes more than the two seconds after which a command says what it waits for.
        return Finished(code, "".join(line for line in lines if " waiting for an answer from " not in line))


class ForkedCommands:
    """Starts commands, each with a new home directory. Use as a context manager."""

    def __init__(self, prefect_server: str, folder: Path) -> None:
        self._prefect_server = prefect_server
        self._folder = folder

    def __enter__(self) -> ForkedCommands:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "EIGENMERGE"))}
        environment |= {
            "PREFECT_API_URL": self._prefect_server,
            "OMP_NUM_THREADS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            env=environment,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def ask(self, line: Mapping[str, object]) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(line), file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def start(self, *arguments: str | Path, log: Path | None = None, env: Mapping[str, str] | None = None) -> Started:
        home = Path(tempfile.mkdtemp(dir=self._folder, prefix="home-"))
        output = home / "output"
        line = {
            "start": [str(argument) for argument in arguments],
            "log": str(log or home / "decompositions"),
            "env": {"HOME": str(home), "PREFECT_HOME": str(home / "prefect"), **(env or {})},
            "out": str(output),
        }
        return Started(self, int(self.ask(line)), output)

    def run(self, *arguments: str | Path, log: Path | None = None, env: Mapping[str, str] | None = None) -> Finished:
        return self.start(*arguments, log=log, env=env).wait()
