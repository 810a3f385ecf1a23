"""How well a checkpoint embeds a task's texts: accuracy under a head that never moves.

The head of a task is its nearest-centroid classifier: one unit vector per label, the mean embedding that the *base* model
gives that label's training items. Base, experts and merges are all judged by the same heads, so what differs between two
accuracies is the encoder alone. Embeddings are what sentence-transformers makes of this model: the mean over tokens,
scaled to unit length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from data import Task
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerFast

MAX_TOKENS = 48  # longer texts are cut; real documents are recognised by their first lines
BATCH = 64


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of correct answers out of `num_items`."""

    share: float
    num_items: int

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.share * (1 - self.share) / self.num_items)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A checkpoint's model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def load(cls, checkpoint: Path) -> Encoder:
        model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        return cls(model.eval(), AutoTokenizer.from_pretrained(checkpoint))

    def tokens(self, texts: Sequence[str]) -> BatchEncoding:
        return self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")

    def embed(self, tokens: BatchEncoding) -> Tensor:
        """Unit vectors, (items, hidden); gradients flow if the caller allows them."""
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    @torch.inference_mode()
    def embed_all(self, texts: Sequence[str]) -> Tensor:
        """Like `embed`, for any number of texts: batched by length, because padding is wasted work."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        parts = [self.embed(self.tokens([texts[i] for i in batch])) for batch in _batches(order)]
        return torch.cat(parts)[torch.tensor(order).argsort()]


def _batches(order: Sequence[int]) -> Iterator[Sequence[int]]:
    return (order[start : start + BATCH] for start in range(0, len(order), BATCH))


def centroid_head(base: Encoder, task: Task) -> Tensor:
    """One unit vector per label, (labels, hidden), from the base model and the training items alone."""
    embedded = base.embed_all([text for text, _ in task.train])
    label = torch.tensor([label for _, label in task.train])
    sums = torch.zeros(len(task.labels), embedded.shape[1]).index_add_(0, label, embedded)
    return normalize(sums, dim=-1)


def accuracy(encoder: Encoder, task: Task, head: Tensor) -> Accuracy:
    """Share of the task's test items whose nearest centroid is their label's."""
    label = torch.tensor([label for _, label in task.test])
    scores = encoder.embed_all([text for text, _ in task.test]) @ head.T
    return Accuracy((scores.argmax(-1) == label).double().mean().item(), len(label))


def evaluate(checkpoint: Path, tasks: Iterable[Task], heads: dict[str, Tensor]) -> dict[str, Accuracy]:
    """Accuracy of one checkpoint on each task's held-out items."""
    encoder = Encoder.load(checkpoint)
    return {task.name: accuracy(encoder, task, heads[task.name]) for task in tasks}
