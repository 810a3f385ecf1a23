"""Score candidates by the accuracy of a text classifier of Transformers on a file of texts and labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, EvaluatorError, suggestion
from ...formats.bounded_json import parse_json_object
from ..candidate import Candidate
from .evaluator import Evaluator, hash_file
from .transformers_models import import_transformers, load_cleanly, transformers_version

_BATCH = 32
_LONGEST_LINE = 2**24


def accuracy_evaluator(file: str | Path) -> Evaluator:
    """Return the evaluator "accuracy": the share of the texts whose most probable label is the one of the file.

    Parameters
    ----------
    file : .csv or .tsv with the columns `text` and `label`, or .jsonl with these keys. A label is a name of the model's
        `id2label`, or its number

    Raises
    ------
    EvaluatorError : the file cannot be read, or Transformers is not installed
    """
    path = Path(file)
    items = read_items(path)
    import_transformers("accuracy")

    def evaluate(candidate: Candidate) -> float:
        transformers = import_transformers("accuracy")
        folder = candidate.directory()
        model = load_cleanly(transformers.AutoModelForSequenceClassification, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        numbers = label_numbers([label for _, label in items], dict(model.config.id2label), path)
        classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device=-1)
        right = 0
        for start in range(0, len(items), _BATCH):
            batch = [text for text, _ in items[start : start + _BATCH]]
            answers: list[Any] = classify(batch, batch_size=_BATCH, truncation=True)
            found = [int(model.config.label2id[answer["label"]]) for answer in answers]
            right += sum(one == other for one, other in zip(found, numbers[start : start + _BATCH], strict=True))
            done = min(start + _BATCH, len(items))
            candidate.report(start // _BATCH, right / done)
        return right / len(items)

    identity = {"accuracy": 1, "file": hash_file(path), "transformers": transformers_version()}
    return Evaluator("accuracy", evaluate, identity, ("accuracy",))


def read_items(path: Path) -> list[tuple[str, str]]:
    """Return (text, label) of each line of a .csv, .tsv or .jsonl file.

    Raises
    ------
    EvaluatorError : the file cannot be read; names the line
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise EvaluatorError(f"{path}: expected a file .csv, .tsv or .jsonl with texts and labels")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if kind == ".jsonl":
                lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
                rows = [
                    (number, parse_json_object(line.encode(), f"line {number}", _LONGEST_LINE))
                    for number, line in lines
                ]
            else:
                reader = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
                rows = [(reader.line_num, row) for row in reader]
    except CheckpointError as error:
        raise EvaluatorError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluatorError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise EvaluatorError(f"{path}: has no items")
    items: list[tuple[str, str]] = []
    for number, row in rows:
        for column in ("text", "label"):
            if row.get(column) is None:
                known = suggestion(column, [name for name in row if name])
                raise EvaluatorError(f"{path}: line {number} has no {column}{known}")
        items.append(
            (str(row["text"]), json.dumps(row["label"]) if isinstance(row["label"], bool) else str(row["label"]))
        )
    return items


def label_numbers(labels: Sequence[str], id2label: dict[Any, str], path: Path) -> list[int]:
    """Return the number of each label, which is given by its name or its number.

    Raises
    ------
    EvaluatorError : the model has no such label
    """
    numbers = {str(name): int(number) for number, name in id2label.items()}
    numbers |= {str(number): int(number) for number in id2label if str(number) not in numbers}
    for label in labels:
        if label not in numbers:
            raise EvaluatorError(f"{path}: the model has no label {label!r}{suggestion(label, id2label.values())}")
    return [numbers[label] for label in labels]
