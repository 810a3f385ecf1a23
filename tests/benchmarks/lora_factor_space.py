"""LoRA experts merged as factors and as dense matrices: seconds, peak memory, and that both give the same.

    python tests/benchmarks/lora_factor_space.py                       8 experts of rank 16, 4096 x 4096; minutes
    python tests/benchmarks/lora_factor_space.py --size 2048 --methods swudi_a iso_c tsv_m

Each case runs in a process of its own, from experts that are drawn to the merged delta: once as the two factors that an
adapter stores, once as the dense matrix that a checkpoint needs, and once by the dense path, where each expert is a
matrix (one at a time). Seconds are processor time, so that other work on the machine hardly counts; the peak is the
resident memory beyond that of the process before the first expert.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch

from eigenmerge.core.numerics.apply_filter import apply_factors, low_rank_form
from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import LowRank

Form = Literal["factors", "factors to a dense delta", "dense"]
FORMS: tuple[Form, ...] = ("factors", "factors to a dense delta", "dense")


@dataclass(frozen=True, slots=True)
class DrawnExperts:
    """LoRA experts that share a part of their directions, drawn one at a time; as factors or multiplied out."""

    size: int
    rank: int
    num_experts: int
    as_factors: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def max_ranks(self) -> Sequence[int]:
        return [self.rank if self.as_factors else self.size] * self.num_experts

    @property
    def all_low_rank(self) -> bool:
        return self.as_factors

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        common = torch.randn(self.rank, self.size, generator=torch.Generator().manual_seed(0))
        for seed in range(1, self.num_experts + 1):
            generator = torch.Generator().manual_seed(seed)
            left = torch.randn(self.size, self.rank, generator=generator) * 0.01
            right = 0.5 * common + torch.randn(self.rank, self.size, generator=generator)
            yield LowRank(left, right) if self.as_factors else left @ right


@dataclass(frozen=True, slots=True)
class Measured:
    """One case: processor seconds, bytes at the peak, and the delta times a fixed matrix, to compare by."""

    seconds: float
    peak_bytes: int
    probe: torch.Tensor


def run_case(form: Form, method_name: str, size: int, rank: int, num_experts: int, threads: int) -> Measured:
    """In a new process: peaks are of a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "probe.pt"
        command = [
            sys.executable,
            __file__,
            "--case",
            json.dumps([form, method_name, size, rank, num_experts, threads]),
        ]
        done = subprocess.run([*command, "--probe", str(place)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
        seconds, peak = json.loads(done.stdout)
        return Measured(seconds, peak, torch.load(place, weights_only=True))


def compute(form: Form, method_name: str, size: int, rank: int, num_experts: int) -> tuple[torch.Tensor, ...]:
    """The merged delta as one matrix or two factors."""
    method = get_method(method_name)
    assert isinstance(method, SpectralMethod)
    parameters = method.Parameters()
    spectrum = method.decompose(DrawnExperts(size, rank, num_experts, form != "dense"), parameters)
    if form == "factors":
        return low_rank_form(spectrum, method.factors(spectrum, parameters))
    return (apply_factors(spectrum, method.factors(spectrum, parameters)),)


def measure(form: Form, method_name: str, size: int, rank: int, num_experts: int, threads: int, probe: Path) -> None:
    torch.set_num_threads(threads)
    compute(form, method_name, 64, 2, 2)  # libraries are loaded, work spaces of theirs are there
    before = start_peak()
    started = time.process_time()
    with torch.inference_mode():
        delta = compute(form, method_name, size, rank, num_experts)
        seconds = time.process_time() - started
        peak = peak_bytes() - before
        result = torch.randn(size, 8, generator=torch.Generator().manual_seed(99))
        for factor in reversed(delta):
            result = factor @ result
    torch.save(result, probe)
    print(json.dumps([seconds, peak]))


def start_peak() -> int:
    """Resident bytes now; the kernel's high-water mark begins again here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def compare(method: str, size: int, rank: int, num_experts: int, threads: int) -> dict[str, Any]:
    """All three forms, the ratios to the dense path, and the relative difference of the results."""
    cases = {form: run_case(form, method, size, rank, num_experts, threads) for form in FORMS}
    dense, factors = cases["dense"], cases["factors"]
    return {
        "cases": cases,
        "faster": dense.seconds / max(factors.seconds, 1e-6),
        # A small case may need no new memory: it fits into memory that was freed before.
        "smaller": dense.peak_bytes / max(factors.peak_bytes, 4096),
        "error": float((factors.probe - dense.probe).norm() / dense.probe.norm()),
    }


def processor() -> str:
    try:
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        return names[0] if names else platform.machine()
    except OSError:
        return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="features in and out")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=["swudi_a"])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        measure(*json.loads(given.case), Path(given.probe))
        return
    print(
        f"{given.experts} experts of rank {given.rank}, {given.size} x {given.size}, float32,"
        f" {given.threads} thread(s); {processor()}, torch {torch.__version__}, {date.today()}"
    )
    print("| method | path | seconds | peak beyond the process | to the dense path |\n|---|---|---|---|---|")
    for method in given.methods:
        found = compare(method, given.size, given.rank, given.experts, given.threads)
        dense = found["cases"]["dense"]
        for form, case in found["cases"].items():
            ratio = f"{dense.seconds / case.seconds:.0f}x faster, {dense.peak_bytes / case.peak_bytes:.1f}x smaller"
            ratio = "" if form == "dense" else ratio
            print(f"| {method} | {form} | {case.seconds:.3f} | {case.peak_bytes / 1e6:.0f} MB | {ratio} |")
        print(f"\n{method}: factors and dense path differ by {found['error']:.1e} (relative, Frobenius)\n")


if __name__ == "__main__":
    main()
