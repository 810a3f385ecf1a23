"""Train the experts of one set: one expert for each task, all weights of the base, with a frozen head from the base.

    python tests/benchmarks/real_experts/training.py [--work .experts] [--families minilm smollm] [--sets 3]

An expert is complete or absent, and is trained once. The order is: first set of each family, then the second sets, so
that a run that is stopped leaves complete sets.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from cache import is_made, key_of, making
from data import Task
from encoder import Encoder, centroid_head
from experts import _batches, _versions
from families import FAMILIES, Family, fetch_packages
from real_tasks import load_real_tasks
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

WARMUP = 0.1  # share of the steps in which the learning rate rises from zero; then it falls to zero
SHARPNESS = 20.0  # factor on cosines before the softmax
VERSION = 1  # of this code: a change that changes experts raises it, and they are trained again


@dataclass(frozen=True, slots=True)
class ExpertSet:
    """The experts of a family from one set of training items.

    number : of the set, from 0; it is the seed of the items and of their order
    """

    family: Family
    number: int
    work: Path

    @property
    def folder(self) -> Path:
        return self.work / self.family.name / f"set{self.number}"

    @property
    def base(self) -> Path:
        return self.family.base(self.work)

    def expert(self, task: Task) -> Path:
        return self.folder / task.name

    def head(self, task: Task) -> Tensor:
        """Return the classifier of a task, (labels, hidden). It is that of the first set for every set."""
        return load_file(self._head(task) / "head.safetensors")["head"]

    def _head(self, task: Task) -> Path:
        return self.work / self.family.name / "heads" / task.name

    def is_complete(self, tasks: list[Task]) -> bool:
        return all(self.expert(task).is_dir() for task in tasks)

    def make_head(self, task: Task, base_hash: str) -> None:
        key = key_of(base=base_hash, task=task.fingerprint(), version=str(VERSION), **_versions())
        if not is_made(self._head(task), key):
            with torch.autocast("cpu", torch.bfloat16):
                head = centroid_head(Encoder.load(self.base), task)
            with making(self._head(task), key) as scratch:
                save_file({"head": head.float()}, scratch / "head.safetensors")

    def make_experts(self, tasks: list[Task], base_hash: str) -> Iterator[tuple[Task, float]]:
        """Train every missing expert; yield each with its seconds of processor time."""
        for task in tasks:
            settings = f"{self.number} {self.family.learning_rate} {WARMUP} {SHARPNESS} {VERSION}"
            key = key_of(base=base_hash, task=task.fingerprint(), settings=settings, **_versions())
            if is_made(self.expert(task), key):
                continue
            started = time.process_time()
            encoder = Encoder.load(self.base)
            train(encoder, task, self.head(task), self.family.learning_rate, self.number)
            with making(self.expert(task), key) as scratch:
                encoder.save(scratch)
            yield task, time.process_time() - started


def train(encoder: Encoder, task: Task, head: Tensor, learning_rate: float, seed: int) -> None:
    """Fine-tune all weights in place with AdamW: one pass, cross-entropy of the cosines with the head.

    Weights and their updates are float32; products are computed in bfloat16, which is four times faster where the
    processor has the instructions.
    """
    torch.manual_seed(seed)
    model = encoder.model
    parameters = [p for name, p in model.named_parameters() if not name.startswith("pooler")]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0)
    batches = _batches(task)  # the items of a task are in the order of the set's seed
    warmup = max(1, round(WARMUP * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(batches) - step) / len(batches))
    )
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            cosines = encoder.embed([text for text, _ in batch]) @ head.T
        cross_entropy(SHARPNESS * cosines.float(), torch.tensor([label for _, label in batch])).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".experts"), help="folder for all files of the benchmark")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = options.work.resolve()
    archives = fetch_packages(work)
    families = [FAMILIES[name] for name in options.families]
    hashes = {family.name: family.make_base(work) for family in families}
    started = time.time()
    for number in range(options.sets):
        for family in families:
            tasks = load_real_tasks(archives, number, max_train=family.train_items)[: family.tasks]
            experts = ExpertSet(family, number, work)
            for first in load_real_tasks(archives, 0, max_train=family.train_items)[: family.tasks]:
                experts.make_head(first, hashes[family.name])
            for task, seconds in experts.make_experts(tasks, hashes[family.name]):
                clock = time.strftime("%H:%M:%S")
                print(
                    f"{clock} {family.name} set {number} {task.name}: {len(task.train)} items,"
                    f" {seconds:.0f} s of processor time, {time.time() - started:.0f} s since the start",
                    flush=True,
                )


if __name__ == "__main__":
    main()
