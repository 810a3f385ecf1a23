"""The cost model against the clock: rates are measured here, then whole layers are predicted from them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from layer_costs import LAYERS_70B, free_bytes, measure_rates, planned_layer, predicted_seconds, run_layer

from tests.resident_memory import reset_peak, resident

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=DEVICES)
def measured(request: pytest.FixtureRequest):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    machine, lines = measure_rates(request.param)
    print("", machine.name, *lines, sep="\n")
    return request.param, machine


@pytest.mark.benchmark
@pytest.mark.parametrize("shape", [(1024, 1024), (4096, 1024), (512, 2048), (2048, 2048)])
def test_full_layers_take_what_is_predicted(measured, shape: tuple[int, int]) -> None:
    """Within a factor of 1.6: an idle machine repeats itself to 10%, the convention is good to 40%."""
    device, machine = measured
    predicted = predicted_seconds(planned_layer("w", shape, 8, None)[0], machine)
    seconds = run_layer(shape, 8, None, device)
    print(f"{shape}: predicted {predicted:.2f} s, measured {seconds:.2f} s")
    assert 1 / 1.6 < seconds / predicted < 1.6


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "shape", "num_experts"),
    [("k_proj", (1024, 8192), 8), ("q_proj", (8192, 8192), 2), ("gate_proj", (28672, 8192), 2)],
)
def test_70b_layers_on_a_cpu(name: str, shape: tuple[int, int], num_experts: int) -> None:
    """One full-rank SWUDI-A layer of each 70B shape that a CPU can do in minutes; down_proj (28672 in) takes hours."""
    _, projected = planned_layer(name, shape, num_experts, None)
    if projected > 0.9 * free_bytes("cpu"):
        pytest.skip(f"{name} needs {projected / 1e9:.0f} GB of memory")
    torch.linalg.eigh(torch.eye(256))  # loads the library
    reset_peak()
    before = resident("VmRSS")
    seconds = run_layer(shape, num_experts, None, "cpu")
    peak = resident("VmHWM") - before
    print(f"{name} {shape}: {seconds:.0f} s, peak {peak / 1e9:.2f} GB, projected {projected / 1e9:.2f} GB")
    assert peak <= 1.05 * projected


@pytest.mark.benchmark
@pytest.mark.gpu
@pytest.mark.parametrize(("name", "rows", "columns"), LAYERS_70B)
def test_every_70b_layer_on_a_gpu(name: str, rows: int, columns: int) -> None:
    """One full-rank SWUDI-A layer of each shape of a 70B Llama, eight experts."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    _, peak = planned_layer(name, (rows, columns), 8, None, "cuda")
    if peak > 0.9 * free_bytes("cuda"):
        pytest.skip(f"{name} needs {peak / 1e9:.0f} GB of GPU memory")
    torch.cuda.reset_peak_memory_stats()
    seconds = run_layer((rows, columns), 8, None, "cuda")
    used = torch.cuda.max_memory_allocated()
    print(f"{name} {rows}x{columns}: {seconds:.1f} s, peak {used / 1e9:.1f} GB, projected {peak / 1e9:.1f} GB")
    assert used <= 1.05 * peak
