"""Run a command and measure it, and describe the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
#: The command of this package in the environment that runs the measurement.
EIGENMERGE = str(Path(sys.executable).parent / "eigenmerge")


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float, float]:
    """Return CPU seconds, wall seconds and peak MB of a command and of the processes that it started."""
    cpu, wall, peak, _ = run_with_output(command, environment)
    return cpu, wall, peak


def run_with_output(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float, float, str]:
    """Return CPU seconds, wall seconds, peak MB, and what the command wrote to standard output.

    It runs in the root of the repository. The peak of a command counts the memory of the process that starts it, so
    this process must stay small: no torch.

    Raises
    ------
    SystemExit : the command failed; with the end of its output
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=dict(environment), cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        for stream in (output, errors):
            stream.seek(0)
        text = output.read().decode(errors="replace")
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{text[-2000:]}{errors.read().decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024, text


def program(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a file of the folder `programs`, in a process of its own."""
    return [sys.executable, "-m", f"tests.benchmarks.peers.programs.{name}", *arguments]


def machine() -> str:
    """Return processor, number of cores and memory."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"
