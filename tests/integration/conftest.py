"""Small real checkpoints on disk, one Prefect server for the session, and the command line as users call it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from .processes import COMMAND
from .s3_models import ForkedCommands, S3Models, upload

HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 32, 64, 50, 3


def llama_shapes(layers: int = LAYERS, hidden: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama of a few kilobytes."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for index in range(layers):
        block = f"model.layers.{index}"
        shapes |= {
            f"{block}.input_layernorm.weight": (hidden,),
            f"{block}.self_attn.q_proj.weight": (hidden, hidden),
            f"{block}.self_attn.k_proj.weight": (hidden // 2, hidden),
            f"{block}.self_attn.v_proj.weight": (hidden // 2, hidden),
            f"{block}.self_attn.o_proj.weight": (hidden, hidden),
            f"{block}.post_attention_layernorm.weight": (hidden,),
            f"{block}.mlp.gate_proj.weight": (INTERMEDIATE, hidden),
            f"{block}.mlp.up_proj.weight": (INTERMEDIATE, hidden),
            f"{block}.mlp.down_proj.weight": (hidden, INTERMEDIATE),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def llama_config(layers: int = LAYERS, hidden: int = HIDDEN) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def base_weights(seed: int = 0, **sizes: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.1
        for name, shape in llama_shapes(**sizes).items()
    }


def expert_weights(base: Mapping[str, torch.Tensor], seed: int, size: float = 0.01) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return {name: value + size * torch.randn(value.shape, generator=generator) for name, value in base.items()}


def save_model(folder: Path, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config or llama_config()))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@dataclass
class Models:
    """A base and its experts below one folder."""

    root: Path
    base: Path
    experts: list[Path]
    base_tensors: dict[str, torch.Tensor] = field(repr=False)
    expert_tensors: list[dict[str, torch.Tensor]] = field(repr=False)

    def recipe(self, method: str = "swudi", **keys: Any) -> dict[str, Any]:
        return {
            "merge_method": method,
            "base_model": str(self.base),
            "models": [{"model": str(path)} for path in self.experts],
            **keys,
        }

    def write_recipe(self, method: str = "swudi", name: str = "recipe.yml", **keys: Any) -> Path:
        path = self.root / name
        path.write_text(yaml.safe_dump(self.recipe(method, **keys)))
        return path


@pytest.fixture
def make_models(tmp_path: Path) -> Callable[..., Models]:
    def make(num_experts: int = 3, dtype: torch.dtype = torch.float32, **sizes: int) -> Models:
        base = base_weights(**sizes)
        experts = [expert_weights(base, index) for index in range(num_experts)]
        config = llama_config(**sizes)
        folder = save_model(tmp_path / "base", {n: t.to(dtype) for n, t in base.items()}, config)
        places = [
            save_model(tmp_path / f"expert{i}", {n: t.to(dtype) for n, t in tensors.items()}, config)
            for i, tensors in enumerate(experts)
        ]
        return Models(tmp_path, folder, places, base, experts)

    return make


@pytest.fixture
def models(make_models: Callable[..., Models]) -> Models:
    return make_models()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One embedded server for all runs of the session: starting one takes seconds."""
    home = tmp_path_factory.mktemp("prefect")
    old = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(home)
    from eigenmerge.deployments.embedded_server import EmbeddedServer
    from eigenmerge.deployments.prefect_settings import quiet_prefect

    quiet_prefect()
    server = EmbeddedServer()
    try:
        yield server.url()
    finally:
        server.close()
        if old is None:
            del os.environ["PREFECT_HOME"]
        else:
            os.environ["PREFECT_HOME"] = old


RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def eigenmerge(prefect_server: str, tmp_path: Path) -> RunCommand:
    """Calls the installed command; keyword `env` adds to the environment."""

    def run(
        *arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PREFECT_API_URL": prefect_server,
            "EIGENMERGE_STORE": str(tmp_path / "store"),
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )

    return run


@contextmanager
def reporting_to(server: str) -> Iterator[None]:
    """Send the flow runs of this process to `server`, without heartbeats: a flow waits a second for their thread."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_API_URL: server, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture
def merge_flow(prefect_server: str) -> Iterator[Callable[..., Any]]:
    """The flow in this process, reporting to the session's server."""
    with reporting_to(prefect_server):
        from eigenmerge.flows import merge

        yield merge


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face directory."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


@pytest.fixture(name="load_checkpoint")
def _load_checkpoint() -> Callable[[Path], dict[str, torch.Tensor]]:
    return load_checkpoint


@pytest.fixture(name="save_model")
def _save_model() -> Callable[..., Path]:
    return save_model


@dataclass
class CommandResult:
    code: int
    out: str
    err: str


@pytest.fixture
def command(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., CommandResult]:
    """The command line in this process: what a user types, without the seconds of a new interpreter."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("EIGENMERGE_STORE", str(tmp_path / "store"))

    def run(*arguments: str | Path) -> CommandResult:
        from eigenmerge.deployments.cli.app import main

        monkeypatch.setattr(sys, "argv", ["eigenmerge", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        code = 0
        try:
            with reporting_to(prefect_server):
                main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capfd.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[..., Any]:
    """The body of the flow without Prefect, for tests of many small merges; returns the finished MergeResult."""

    def run(recipe: Mapping[str, Any], out: str | Path, store: str | Path | None = None, **keys: Any) -> Any:
        import time

        from eigenmerge.core.cache.alignments import aligned_tensors, gather_alignments, largest_of
        from eigenmerge.core.output.destination import prepare_destination
        from eigenmerge.core.recipe.recipe import recipe_from_mapping
        from eigenmerge.core.steps.assemble import assemble
        from eigenmerge.core.steps.decompose_shard import decompose_shard
        from eigenmerge.core.steps.make_plan import make_plan
        from eigenmerge.core.steps.merge_shard import merge_shard
        from eigenmerge.core.storage.store import Store

        started = time.monotonic()
        plan = make_plan(recipe_from_mapping(recipe), **keys)
        target = prepare_destination(plan, str(out), None, overwrite=False)
        place = str(store or tmp_path / "store")
        aligned = [shard for shard in plan.shards if aligned_tensors(shard)]
        decomposed = [decompose_shard(shard, plan.settings, place, None) for shard in aligned]
        gather_alignments(plan, Store(place), largest_of(report.largest_values for report in decomposed))
        reports = [merge_shard(shard, plan.settings, place, None) for shard in plan.shards]
        return assemble(plan, reports, target, place, None, started=started, decomposed=decomposed)

    return run


@pytest.fixture
def s3_models(models: Models, s3_root: Any) -> S3Models:
    """The small models on S3, below a fresh prefix."""
    return upload(models, s3_root.uri, s3_root.storage_options)


@pytest.fixture(scope="session")
def forked_commands(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    """Starts commands in processes of their own, without the seconds of a new interpreter."""
    with ForkedCommands(prefect_server, tmp_path_factory.mktemp("commands")) as commands:
        yield commands
