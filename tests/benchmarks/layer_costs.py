"""Measure what layers cost on this machine: the rates of a machine model, and whole layers of a 70B Llama.

    python tests/benchmarks/layer_costs.py                        processors, about 2 minutes
    python tests/benchmarks/layer_costs.py --budget 600           also layers predicted to take up to 10 minutes
    python tests/benchmarks/layer_costs.py --device cuda --json machine.json

With --json the rates are written as a machine that `eigenmerge plan RECIPE --simulate 1,8,64 --machine machine.json`
reads; bandwidths and price, which cannot be measured here, are those of the named machine that comes nearest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eigenmerge.core.listing import LoraSource, TensorSource
from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import LowRank
from eigenmerge.core.planning.cost.machines import EIGH_FLOPS_PER_CUBE, MACHINES, SVD_FLOPS_PER_CUBE, MachineModel
from eigenmerge.core.planning.cost.projection import gpu_solver_bytes
from eigenmerge.core.planning.cost.simulate import shard_cost, split_work
from eigenmerge.core.planning.plan import ExpertTensor, LayerShard, TensorPlan

# name, out features, in features of one block of Llama-3-70B
LAYERS_70B = [
    ("k_proj, v_proj", 1024, 8192),
    ("q_proj, o_proj", 8192, 8192),
    ("gate_proj, up_proj", 28672, 8192),
    ("down_proj", 8192, 28672),
]
EIGH_SIZES = {"cpu": (512, 1024, 2048, 4096), "cuda": (2048, 4096, 8192, 16384, 28672)}
SVD_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
PRODUCT_SIZE = {"cpu": 3072, "cuda": 16384}


@dataclass(frozen=True, slots=True)
class RandomTaskVectors:
    """Experts drawn one at a time from their seeds, as a stream from a store would come."""

    shape: tuple[int, int]
    num_experts: int
    rank: int | None
    device: str

    @property
    def max_ranks(self) -> Sequence[int]:
        return [self.rank or min(self.shape)] * self.num_experts

    @property
    def all_low_rank(self) -> bool:
        return self.rank is not None

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        rows, columns = self.shape
        for seed in range(self.num_experts):
            generator = torch.Generator(self.device).manual_seed(seed)

            def draw(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
                return torch.randn(*shape, generator=generator, device=self.device).mul_(1e-3)

            yield draw(rows, columns) if self.rank is None else LowRank(draw(rows, self.rank), draw(self.rank, columns))


def seconds_of(action: Callable[[], object], device: str, repeat: int = 1) -> float:
    """The quickest of `repeat` runs.

    On processors it is processor time shared out over torch's threads: other work on the machine lengthens the wall
    clock's time, but hardly this. A GPU is waited for.
    """
    times = []
    for _ in range(repeat):
        if device == "cuda":
            torch.cuda.synchronize()
        begin, begin_processor = time.perf_counter(), time.process_time()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        wall, processor = time.perf_counter() - begin, time.process_time() - begin_processor
        times.append(wall if device == "cuda" else min(wall, processor / torch.get_num_threads()))
    return min(times)


def symmetric(n: int, device: str) -> torch.Tensor:
    """A matrix like the interference operator: positive, with a falling spectrum."""
    draws = torch.randn(n, n, device=device) * torch.linspace(1, 0.01, n, device=device)
    return draws @ draws.T / n


def product_rates(device: str) -> tuple[float, float, list[str]]:
    """FLOP/s of a matrix product and of elementwise work."""
    n = PRODUCT_SIZE[device]
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    torch.matmul(a, b)  # warms up libraries and clocks
    product = seconds_of(lambda: torch.matmul(a, b), device, repeat=5)
    mixed = seconds_of(lambda: a.lerp_(b, 0.5), device, repeat=5)
    # the planner counts three operations an element for a mean delta
    rates = 2.0 * n**3 / product, 3.0 * n**2 / mixed
    return *rates, [line("product", n, product, rates[0]), line("elementwise", n, mixed, rates[1])]


def eigh_rates(device: str) -> tuple[float, float, list[str]]:
    """Latency per row and FLOP/s by the 10 n^3 convention."""
    points, lines = [], []
    for n in EIGH_SIZES[device]:
        matrix = symmetric(n, device)
        seconds = seconds_of(lambda m=matrix: torch.linalg.eigh(m), device, repeat=3 if n <= 2048 else 1)
        points.append((n, seconds))
        lines.append(line("eigh", n, seconds, EIGH_FLOPS_PER_CUBE * n**3 / seconds))
    return *fit_eigh(points), lines


def svd_rate(device: str) -> tuple[float, list[str]]:
    """FLOP/s by the 25 n^3 convention, of the largest size."""
    rate, lines = 0.0, []
    for n in SVD_SIZES[device]:
        matrix = torch.randn(n, n, device=device)
        seconds = seconds_of(lambda m=matrix: torch.linalg.svd(m), device)
        rate = SVD_FLOPS_PER_CUBE * n**3 / seconds
        lines.append(line("svd", n, seconds, rate))
    return rate, lines


def line(what: str, n: int, seconds: float, rate: float) -> str:
    return f"{what:12s} n={n:6d}  {seconds:9.3f} s  {rate / 1e9:9.1f} GFLOP/s"


def measure_rates(device: str) -> tuple[MachineModel, list[str]]:
    """The machine model of this machine, and lines that say what was measured."""
    matmul, elementwise, product_lines = product_rates(device)
    latency, eigh, eigh_lines = eigh_rates(device)
    svd, svd_lines = svd_rate(device)
    nearest = MACHINES["h100-80gb" if device == "cuda" else "cpu-2core"]
    measured: dict[str, object] = {
        "name": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "matmul_flops": matmul,
        "eigh_flops": eigh,
        "eigh_seconds_per_row": latency,
        "svd_flops": svd,
        "elementwise_flops": elementwise,
        "source": f"rates: tests/benchmarks/layer_costs.py with torch {torch.__version__}; the rest as {nearest.name}",
    }
    if device == "cuda":
        measured["memory_bytes"] = int(torch.cuda.get_device_properties(0).total_memory * 0.9)
    return nearest.model_copy(update=measured), product_lines + eigh_lines + svd_lines


def fit_eigh(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Latency per row and rate of t = latency n + 10 n^3 / rate, least squares on relative errors, neither negative."""
    rows = torch.tensor([[n / t, EIGH_FLOPS_PER_CUBE * n**3 / t] for n, t in points], dtype=torch.float64)
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    latency, inverse = torch.linalg.lstsq(rows, ones).solution.squeeze(1).tolist()
    if latency < 0 or inverse <= 0:
        cubes = rows[:, 1:]
        latency, inverse = 0.0, float(torch.linalg.lstsq(cubes, ones).solution)
    return latency, 1.0 / inverse


def planned_layer(
    name: str, shape: tuple[int, int], num_experts: int, rank: int | None, device: str = "cpu"
) -> tuple[TensorPlan, int]:
    """The layer as the planner sees it, and the projected peak bytes of the method."""
    method = get_method("swudi_a")
    assert isinstance(method, SpectralMethod)
    ranks = [rank or min(shape)] * num_experts
    rows, columns = shape

    def source(*dims: int) -> TensorSource:
        return TensorSource("", 0, 0, "BF16", dims)

    factors = None if rank is None else LoraSource(source(rows, rank), source(rank, columns), 1.0)
    experts = tuple(
        ExpertTensor(index, source(*shape) if rank is None else None, factors) for index in range(num_experts)
    )
    flops = method.flops(shape, ranks, rank is not None) + 2.0 * min(columns, sum(ranks)) * rows * columns
    tensor = TensorPlan(
        name, shape, "BF16", "merge", "2-D weight", None, experts, "swudi_a", spectrum_key="spectra/x", flops=flops
    )
    peak = 4 * method.peak_elements(shape, ranks, rank is not None)
    return tensor, peak + (gpu_solver_bytes(min(columns, sum(ranks)), 4) if device == "cuda" else 0)


def predicted_seconds(tensor: TensorPlan, machine: MachineModel) -> float:
    shard = LayerShard(0, (tensor,), "", 0, 0, tensor.flops, 0)
    return shard_cost(shard, machine).compute


def run_layer(shape: tuple[int, int], num_experts: int, rank: int | None, device: str) -> float:
    """Seconds of decomposition, filter and product, as a worker would do them; drawing the experts is not counted."""
    method = get_method("swudi_a")
    assert isinstance(method, SpectralMethod)
    vectors = RandomTaskVectors(shape, num_experts, rank, device)
    drawing = seconds_of(lambda: [None for _ in vectors], device)
    parameters = method.Parameters()

    def merge() -> None:
        spectrum = method.decompose(vectors, parameters)
        apply_factors(spectrum, method.factors(spectrum, parameters))

    return seconds_of(merge, device) - drawing


def free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--budget", type=float, default=60.0, help="skip layers predicted to take longer, seconds")
    parser.add_argument("--json", type=Path, help="write the machine model here")
    arguments = parser.parse_args()
    device: str = arguments.device

    machine, lines = measure_rates(device)
    print(f"{machine.name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("\n".join(lines))
    print(f"\nLayers of a 70B Llama, {arguments.experts} experts, float32, swudi_a")
    print(f"{'layer':22s} {'shape':>14s} {'experts':>8s} {'predicted':>10s} {'measured':>10s} {'peak GB':>8s}")
    for name, rows, columns in LAYERS_70B:
        for rank in (None, 16):
            tensor, peak = planned_layer(name, (rows, columns), arguments.experts, rank, device)
            predicted = predicted_seconds(tensor, machine)
            kind = "full" if rank is None else f"rank {rank}"
            if predicted > arguments.budget:
                outcome = "skipped"
            elif peak > 0.9 * free_bytes(device):
                outcome = "no room"
            else:
                outcome = f"{run_layer((rows, columns), arguments.experts, rank, device):8.2f} s"
            print(f"{name:22s} {rows:6d}x{columns:<7d} {kind:>8s} {predicted:8.2f} s {outcome:>10s} {peak / 1e9:8.2f}")
            work = split_work(tensor)
            shares = {"eigh": work.eigh, "svd": work.svd, "products": work.matmul}
            print(" " * 22, "  ".join(f"{part} {flops / 1e12:.2f} TFLOP" for part, flops in shares.items() if flops))
    if arguments.json:
        arguments.json.write_text(machine.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
