"""A checkpoint as a sentence encoder: the mean over tokens, scaled to unit length.

sentence-transformers uses this model in the same way; the code is here so that the demo needs only transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from data import DemoError, Task
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

MAX_TOKENS = 32  # longer texts are cut to save time; the first lines show the topic
BATCH = 64


@dataclass(frozen=True, slots=True)
class Encoder:
    """A checkpoint's model, without dropout, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, checkpoint: Path) -> Encoder:
        """Load a Hugging Face directory whose tensors are exactly the model's.

        Raises
        ------
        DemoError : a tensor is missing, unexpected or of another shape, about which transformers only warns
        """
        logging.disable_progress_bar()
        model, report = AutoModel.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
        wrong = {kind: keys for kind, keys in report.items() if keys}
        if wrong:
            raise DemoError(f"{checkpoint} does not load cleanly: {wrong}")
        return cls(model.eval(), AutoTokenizer.from_pretrained(checkpoint))

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokens(self, texts: Sequence[str]) -> BatchEncoding:
        return self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors, (texts, hidden), of one batch, with gradients unless the caller disables them."""
        tokens = self.tokens(texts)
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    @torch.inference_mode()
    def embed_all(self, texts: Sequence[str]) -> Tensor:
        """Return `embed` of any number of texts, in batches of similar length, which need little padding."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        parts = [self.embed([texts[index] for index in batch]) for batch in batches]
        return torch.cat(parts)[torch.tensor(order).argsort()]


def centroid_head(base: Encoder, task: Task) -> Tensor:
    """Return the classifier of a task, (labels, hidden): for each label the mean direction of its training items.

    It is made from the base model and never trained. Base, experts and merges use the same head, so accuracies differ
    only because of the encoder, and a merge needs no head.
    """
    embedded = base.embed_all([text for text, _ in task.train])
    label = torch.tensor([label for _, label in task.train])
    sums = torch.zeros(len(task.labels), embedded.shape[1]).index_add_(0, label, embedded)
    return normalize(sums, dim=-1)
