"""Time whole merges beside mergekit: CPU seconds, wall seconds and peak memory of the commands, in alternating runs.

    python tests/benchmarks/peer_speed.py --json FILE --page docs/benchmarks.md      measure, and write the page
    python tests/benchmarks/peer_speed.py --check tests/benchmarks/peer_speed.json   measure, and compare
    python tests/benchmarks/peer_speed.py --experts 3 8                              also rows of eight experts

mergekit is the command in MERGEKIT_YAML or on the PATH; it needs an environment of its own. Without it there is nothing
to compare with, and only this package is timed. `--check` fails where a ratio is 20% worse than in the given file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

WORSE = 1.2  # ratio to the stored one above which a check fails
_DENSITY = {"ties": 0.3, "dare_ties": 0.5}
_NUM_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama checkpoint in bfloat16."""

    layers: int
    hidden: int
    inner: int
    vocabulary: int


SIZES = {"7 MB": Size(4, 256, 688, 1024), "400 MB": Size(8, 1024, 4096, 32000)}


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe, and what each run of each tool took: CPU seconds, wall seconds, peak MB."""

    size: str
    method: str
    num_experts: int
    runs: dict[str, list[tuple[float, float, float]]] = field(
        default_factory=dict[str, "list[tuple[float, float, float]]"]
    )

    @property
    def label(self) -> str:
        return f"{self.size}, {self.method}, {self.num_experts} experts"

    def median(self, tool: str, figure: int) -> float:
        return statistics.median(run[figure] for run in self.runs[tool])

    def ratio(self, figure: int) -> float | None:
        """Ours to mergekit's; None where it was not timed."""
        if not self.runs.get("mergekit"):
            return None
        return self.median("eigenmerge", figure) / self.median("mergekit", figure)


def write_models(folder: Path, size: Size, num_experts: int) -> None:
    """Write base and experts; their differences are of rank 8 and a hundredth of the weights."""
    import torch
    from safetensors.torch import save_file

    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (size.vocabulary, size.hidden),
        "lm_head.weight": (size.vocabulary, size.hidden),
    }
    shapes["model.norm.weight"] = (size.hidden,)
    for layer in range(size.layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (size.hidden, size.hidden) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (size.inner, size.hidden) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (size.hidden, size.inner)
        shapes |= {f"{at}{name}_layernorm.weight": (size.hidden,) for name in ("input", "post_attention")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": size.vocabulary,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for index in range(-1, num_experts):
        target = folder / ("base" if index < 0 else f"expert{index}")
        target.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in base.items():
            changed = tensor
            if index >= 0:
                left, right = (
                    torch.randn((length, 8), generator=generator) for length in (len(tensor), tensor[0].numel())
                )
                changed = tensor + (7e-5 * left @ right.T).reshape(tensor.shape)
            tensors[name] = changed.bfloat16()
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(config))


def recipe(folder: Path, method: str, num_experts: int) -> str:
    """Return a recipe that both tools read."""
    models: list[dict[str, object]] = []
    for index in range(num_experts):
        parameters = {"weight": 0.4} | ({"density": _DENSITY[method]} if method in _DENSITY else {})
        models.append({"model": str(folder / f"expert{index}"), "parameters": parameters})
    base = {} if method == "linear" else {"base_model": str(folder / "base")}
    return json.dumps({"merge_method": method, "models": models, "dtype": "bfloat16", **base})


def run(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Return CPU seconds, wall seconds and peak MB of a command and of the processes that it started."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read().decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024


def measure(rows: Sequence[Row], num_runs: int, mergekit: str | None, warmup: int = 1) -> None:
    """Add the runs of both tools to the rows, in turn, after `warmup` runs of each that are not counted."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    ours = str(Path(sys.executable).parent / "eigenmerge")
    with tempfile.TemporaryDirectory(prefix="eigenmerge-peers-") as name:
        work = Path(name)
        for row in rows:
            models = work / row.size / str(row.num_experts)
            if not models.exists():
                # In another process: the peak memory of a command counts that of the process that starts it.
                writer = get_context("spawn").Process(
                    target=write_models, args=(models, SIZES[row.size], row.num_experts)
                )
                writer.start()
                writer.join()
            text = work / "recipe.yml"
            text.write_text(recipe(models, row.method, row.num_experts))
            out, store = work / "out", work / "store"
            commands = {"eigenmerge": [ours, "merge", str(text), str(out), "--store", str(store), "--quiet"]}
            if mergekit is not None:
                commands["mergekit"] = [mergekit, str(text), str(out), "--quiet", "--random-seed", "42"]
            for turn in range(num_runs + warmup):
                for tool, command in commands.items():
                    for folder in (out, store):
                        shutil.rmtree(folder, ignore_errors=True)
                    taken = run(command, environment)
                    if turn >= warmup:
                        row.runs.setdefault(tool, []).append(taken)
            print(
                row.label,
                {tool: [round(row.median(tool, one), 2) for one in range(3)] for tool in commands},
                flush=True,
            )


def page(rows: Sequence[Row], mergekit: str) -> str:
    """Return the page of a measurement: median, and the smallest and largest of the runs."""

    def show(row: Row, tool: str, figure: int, digits: int, scale: float = 1.0) -> str:
        values = [run[figure] / scale for run in row.runs.get(tool, [])]
        if not values:
            return "-"
        low, middle, high = (f"{one:.{digits}f}" for one in (min(values), statistics.median(values), max(values)))
        return middle if low == high else f"{middle} ({low}-{high})"

    header = ["merge", *(f"{tool}: {what}" for what in ("CPU s", "wall s", "GB") for tool in ("ours", "mergekit"))]
    lines = [
        "# Benchmarks",
        "",
        "Written by `tests/benchmarks/peer_speed.py --page docs/benchmarks.md`; do not edit. Whole commands from",
        "start to exit, in alternating runs with an empty store: the median, and the smallest and largest run. CPU",
        "seconds include those of Prefect's server. Peak memory is that of the largest process.",
        "",
        f"{machine()}; {datetime.now(UTC):%Y-%m-%d}; eigenmerge {version('eigenmerge')}, {mergekit}, torch"
        f" {version('torch')}; models in bfloat16, files in the page cache.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for row in rows:
        cells = [row.label]
        for figure, digits, scale in ((0, 1, 1.0), (1, 1, 1.0), (2, 2, 1024.0)):
            cells += [show(row, tool, figure, digits, scale) for tool in ("eigenmerge", "mergekit")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return processor, number of cores and memory."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def read_rows(file: Path) -> dict[str, Row]:
    """Return the rows of a file that `--json` wrote, by label."""
    rows = [Row(**one) for one in json.loads(file.read_text())["rows"]]
    return {row.label: row for row in rows}


def worse_rows(rows: Sequence[Row], reference: Mapping[str, Row]) -> list[str]:
    """Return a line for each ratio to mergekit that is more than `WORSE` times that of the reference."""
    found: list[str] = []
    for row in rows:
        before = reference.get(row.label)
        for figure, what in enumerate(("CPU", "wall", "memory")):
            now, then = row.ratio(figure), before.ratio(figure) if before is not None else None
            if now is not None and then is not None and now > WORSE * then:
                found.append(f"{row.label}: {what} is {now:.2f} of mergekit's, and was {then:.2f}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--methods", default="linear,task_arithmetic,dare_ties,ties")
    parser.add_argument(
        "--experts", type=int, nargs="+", default=[3], metavar="N", help="of the larger models; default: 3"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="runs that are not counted; default: 1")
    parser.add_argument("--json", type=Path, help="write the runs; other rows of the file stay")
    parser.add_argument("--page", type=Path, help="write the page")
    parser.add_argument("--check", type=Path, help="compare with runs that --json wrote")
    given = parser.parse_args(arguments)
    mergekit = os.environ.get("MERGEKIT_YAML") or shutil.which("mergekit-yaml")
    if given.check is not None and mergekit is None:
        print("nothing to compare with: mergekit-yaml is not on the PATH; set MERGEKIT_YAML to that of its environment")
        return 0
    rows: list[Row] = []
    for size in given.size or SIZES:
        methods = ["linear"] if size == "7 MB" else given.methods.split(",")
        counts = [3] if size == "7 MB" else given.experts
        rows += [Row(size, method, count) for method in methods for count in counts]
    measure(rows, given.runs, mergekit, given.warmup)
    if given.json is not None:
        kept = read_rows(given.json) if given.json.exists() else {}
        rows = list((kept | {row.label: row for row in rows}).values())
        given.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(content, indent=1) + "\n")
    if given.page is not None:
        given.page.write_text(page(rows, "mergekit 0.1.5" if mergekit else "without mergekit"))
    worse = [] if given.check is None else worse_rows(rows, read_rows(given.check))
    print(*worse, sep="\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
