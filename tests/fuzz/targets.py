"""The parsers of data from outside: for each, valid content, and a function that reads other content in its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save, save_file

from eigenmerge.core.cache.inventory import take_inventory
from eigenmerge.core.cache.parts import read_record, record_key, write_record
from eigenmerge.core.cache.reports import ShardReport, TensorReport
from eigenmerge.core.cache.run_folder import run_object_key
from eigenmerge.core.cache.runs import read_run
from eigenmerge.core.cache.sealed_json import write_sealed_json
from eigenmerge.core.cache.spectra.format import parse_head
from eigenmerge.core.cache.spectra.reader import verify_spectrum
from eigenmerge.core.cache.spectra.writer import write_spectrum
from eigenmerge.core.cache.store_marker import mark_store
from eigenmerge.core.coordination.claims import is_alive, is_claim
from eigenmerge.core.formats.file_names import INDEX_NAME, MANIFEST_NAME
from eigenmerge.core.formats.safetensors_header import parse_header
from eigenmerge.core.output.read_manifest import read_manifest
from eigenmerge.core.planning.inputs.tokenizers import read_vocabulary
from eigenmerge.core.planning.summary import summarize_plan
from eigenmerge.core.publishing.expert_registry import scan_registry
from eigenmerge.core.publishing.publication import LATEST, read_publication
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe, read_stages
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.store import Store

from ..core.cache.examples import spectrum as make_spectrum

RUN = "0123abcd" * 8
PART = f"parts/{'a' * 64}.safetensors"
CONFIG = {"architectures": ["A"], "model_type": "llama", "num_hidden_layers": 1, "vocab_size": 4, "hidden_size": 4}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "rank_pattern": {"q": 2}}
AT = "base_model.model.layers.0.q"


@dataclass(frozen=True)
class Target:
    """One parser.

    seed : valid content
    read : reads content; may raise EigenmergeError only
    """

    seed: bytes
    read: Callable[[bytes], object]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def make_targets(folder: Path) -> Mapping[str, Target]:
    """Return all targets by name, with the files that they need beside the fuzzed one in `folder`."""
    weights = {"layers.0.q.weight": torch.ones(4, 4), "norm.weight": torch.ones(4)}
    for name in ("base", "expert", "indexed", "registry/a"):
        (folder / name).mkdir(parents=True)
        file = "model-00001-of-00001.safetensors" if name == "indexed" else "model.safetensors"
        save_file(weights, folder / name / file)
        (folder / name / "config.json").write_bytes(_json(CONFIG))
    (folder / "adapter").mkdir()
    factors = {f"{AT}.lora_A.weight": torch.ones(2, 4), f"{AT}.lora_B.weight": torch.ones(4, 2)}
    save_file(factors, folder / "adapter/adapter_model.safetensors")
    store = Store(str(folder / "store"))
    mark_store(store)
    report = ShardReport(
        0, PART, 16, 8, "0" * 64, "e", 1.0, 5, (TensorReport("w", "merge", "ties", 0.5, "00", 3, 0.9),)
    )
    write_record(store, report)
    spectrum_key = f"spectra/{'a' * 64}.arrow"
    write_spectrum(store, spectrum_key, make_spectrum(5), provenance={})

    def write_and(path: Path, action: Callable[[], object]) -> Callable[[bytes], object]:
        def read(content: bytes) -> object:
            path.write_bytes(content)
            return action()

        return read

    def plan_with(expert: str) -> Callable[[], object]:
        recipe = {"merge_method": "ties", "base_model": str(folder / "base"), "models": [str(folder / expert)]}
        return lambda: summarize_plan(make_plan(read_recipe(recipe)))

    def stored(key: str, action: Callable[[], object]) -> Callable[[bytes], object]:
        def read(content: bytes) -> object:
            store.write(key, content)
            return action()

        return read

    def run_record(content: bytes) -> object:
        """Read a record whose seal is right whatever it says."""
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            record.pop("sha256", None)
            write_sealed_json(store, run_object_key(RUN, "run.json"), record)
        else:
            store.write(run_object_key(RUN, "run.json"), content)
        from eigenmerge.deployments.cli.commands.cache_command import ls

        take_inventory(store)
        ls(store=store.root_uri)
        return read_run(store, RUN)

    def part_record(content: bytes) -> object:
        """Read a report whose checksum is right whatever it says."""
        text = content.decode(errors="replace")
        sealed = _json({"sha256": hashlib.sha256(text.encode()).hexdigest(), "report": text})
        store.write(record_key(PART), sealed)
        return read_record(store, PART)

    def tokenizer(content: bytes) -> object:
        listing: Any = SimpleNamespace(side_files={"tokenizer.json": "tokenizer.json"}, name="m")
        return read_vocabulary(listing, {"tokenizer.json": content})

    def claim(content: bytes) -> object:
        return is_claim(content), is_alive(content, 1.0)

    def spectrum(content: bytes) -> object:
        store.write(spectrum_key, content)
        verify_spectrum(store, spectrum_key)
        return parse_head(content, len(content), spectrum_key)

    pointer = {
        "layout": 3, "folder": "2026", "recipe": "r", "base": "b", "version": "1", "experts": {"a": "f"}, "sequence": 1,
        "run_key": RUN, "side_files": {}, "skipped": {}, "etags": {}, "history": ["2026"],
    }  # fmt: skip
    index = {"weight_map": {name: "model-00001-of-00001.safetensors" for name in weights}}
    manifest = {"format": 1, "run_key": RUN, "files": [], "side_files": {}, "tensors": [], "recipe": {}}
    record = {"format": 1, "run_key": RUN, "method": "swudi", "experts": ["a"], "started": "2026", "base": "b"}
    owner = {"id": "a", "host": "h", "pid": 1, "boot": "b", "started": 1.0, "beat": 0}
    vocabulary = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "c"}]}
    recipe = b"merge_method: ties\nbase_model: b\nmodels:\n- model: a\n  parameters: {weight: [0.1, 0.9]}\nseed: 3\n"
    return {
        "header": Target(save(weights), lambda content: parse_header(content, len(content), "file")),
        "index": Target(
            _json(index), write_and(folder / "indexed" / INDEX_NAME, lambda: list_model(str(folder / "indexed"), None))
        ),
        "adapter_config": Target(
            _json(ADAPTER), write_and(folder / "adapter/adapter_config.json", plan_with("adapter"))
        ),
        "config": Target(_json(CONFIG), write_and(folder / "expert/config.json", plan_with("expert"))),
        "recipe": Target(recipe, lambda content: read_stages("\n" + content.decode(errors="replace") + "\n", "OUT")),
        "spectrum": Target(store.read(spectrum_key), spectrum),
        "part_record": Target(_json(report.to_dict()), part_record),
        "claim": Target(_json(owner), claim),
        "run_record": Target(_json(record), run_record),
        "manifest": Target(_json(manifest), stored(MANIFEST_NAME, lambda: read_manifest(store))),
        "pointer": Target(_json(pointer), stored(LATEST, lambda: read_publication(store))),
        "tokenizer": Target(_json(vocabulary), tokenizer),
        "registry": Target(
            _json(CONFIG),
            write_and(folder / "registry/a/config.json", lambda: scan_registry(Store(str(folder / "registry")))),
        ),
    }
