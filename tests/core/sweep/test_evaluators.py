"""Evaluators: a function of a module, a command, and models of Transformers; every mistake in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import EvaluatorError
from eigenmerge.core.sweep.evaluators.accuracy import accuracy_evaluator, label_numbers, read_items
from eigenmerge.core.sweep.evaluators.command import command_evaluator
from eigenmerge.core.sweep.evaluators.evaluator import Evaluator, combine
from eigenmerge.core.sweep.evaluators.language_harness import main_metric
from eigenmerge.core.sweep.evaluators.load_function import load_function
from eigenmerge.core.sweep.evaluators.perplexity import perplexity_evaluator


class FolderCandidate:
    """A candidate whose directory exists already. The evaluators use nothing else of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[tuple[int, float]] = []

    def directory(self) -> Path:
        return self.folder

    def report(self, step: int, value: float) -> None:
        self.reports.append((step, value))


def run(evaluator: Evaluator, folder: Path) -> dict[str, float]:
    return evaluator(FolderCandidate(folder))  # type: ignore[arg-type]


def test_a_command_prints_the_score_last(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text("import sys, os\nprint('loading', sys.argv[1])\nprint(len(os.listdir(sys.argv[1])) / 4)\n")
    evaluator = command_evaluator(f"{sys.executable} {script} {{checkpoint}}")
    assert run(evaluator, tmp_path) == {"score": 0.25}
    before = evaluator.identity
    script.write_text("print(1)\n")
    assert command_evaluator(f"{sys.executable} {script} {{checkpoint}}").identity != before


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such task')", "ended with exit code 1: no such task"),
        ("print('done')", "expected a finite number as the last line, found 'done'"),
        ("print('nan')", "found 'nan'"),
        ("pass", "found ''"),
    ],
)
def test_a_command_without_a_score(code: str, message: str, tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(code)
    with pytest.raises(EvaluatorError) as error:
        run(command_evaluator(f"{sys.executable} {script} {{checkpoint}}"), tmp_path)
    assert message in str(error.value)


def test_commands_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(EvaluatorError, match=r"expected \{checkpoint\}"):
        command_evaluator("python score.py")
    with pytest.raises(EvaluatorError, match="No closing quotation"):
        command_evaluator("python 'score.py {checkpoint}")
    with pytest.raises(EvaluatorError, match="no-such-program cannot be started"):
        run(command_evaluator("no-such-program {checkpoint}"), tmp_path)


def test_functions_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scores.py").write_text("NUMBER = 1\ndef accuracy(candidate):\n    return 0.5\n")
    (tmp_path / "broken_scores.py").write_text("import torch_that_is_missing\n")
    (tmp_path / "wrong_scores.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert run(load_function("my_scores:accuracy"), tmp_path) == {"accuracy": 0.5}
    assert sys.path == path
    for place, message in {
        "my_scores": "expected module:function",
        "my_scores.py:accuracy": "there is no module my_scores.py",
        "no_scores:accuracy": "there is no module no_scores",
        "my_scores:accuracies": "accuracies does not exist; did you mean 'accuracy'",
        "my_scores:NUMBER": "NUMBER is no function",
        "broken_scores:accuracy": "broken_scores needs torch_that_is_missing, which is not installed",
        "wrong_scores:accuracy": "cannot be imported: ZeroDivisionError",
    }.items():
        with pytest.raises(EvaluatorError) as error:
            load_function(place)
        assert message in str(error.value)


def test_several_evaluators_have_all_metrics(tmp_path: Path) -> None:
    one = Evaluator("one", lambda candidate: 1.0, 1, ("one",))
    two = Evaluator("two", lambda candidate: {"two": 2.0, "three": 3.0}, 2, ("two", "three"), frozenset({"three"}))
    both = combine([one, two])
    assert run(both, tmp_path) == {"one": 1.0, "two": 2.0, "three": 3.0}
    assert (both.metrics, both.lower_is_better) == (("one", "two", "three"), frozenset({"three"}))
    with pytest.raises(EvaluatorError, match="returns 'one', which another evaluator returns too"):
        run(combine([one, one]), tmp_path)


def test_files_of_texts_and_labels(tmp_path: Path) -> None:
    expected = [("a, b", "good"), ("c", "1")]
    (tmp_path / "items.csv").write_text('text,label\n"a, b",good\nc,1\n')
    (tmp_path / "items.tsv").write_text("label\ttext\ngood\ta, b\n1\tc\n")
    (tmp_path / "items.jsonl").write_text('{"text": "a, b", "label": "good"}\n\n{"text": "c", "label": 1}\n')
    for name in ("items.csv", "items.tsv", "items.jsonl"):
        assert read_items(tmp_path / name) == expected
    assert label_numbers(["good", "1"], {0: "good", 1: "bad"}, Path("x.csv")) == [0, 1]
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "other.csv").write_text("txt,label\na,b\n")
    (tmp_path / "broken.jsonl").write_text("{\n")
    for name, message in {
        "items.txt": "expected a file .csv, .tsv or .jsonl",
        "missing.csv": "No such file",
        "empty.csv": "has no items",
        "other.csv": "line 2 has no text; did you mean 'txt'",
        "broken.jsonl": "line 1",
    }.items():
        with pytest.raises(EvaluatorError) as error:
            read_items(tmp_path / name)
        assert message in str(error.value)
    with pytest.raises(EvaluatorError, match="no label 'god'; did you mean 'good'"):
        label_numbers(["god"], {0: "good", 1: "bad"}, Path("x.csv"))


def test_the_main_metric_of_a_task_of_the_harness() -> None:
    assert main_metric("t", {"alias": "t", "acc,none": 0.4, "acc_stderr,none": 0.1, "acc_norm,none": 0.5}) == 0.5
    assert main_metric("t", {"alias": "t", "sample_len": 5, "word_perplexity,none": 12.0}) == 12.0
    with pytest.raises(EvaluatorError, match="has no number"):
        main_metric("t", {"alias": "t"})


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "good", "bad", "film", "day", "night"])}
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


def save(model: Any, tokenizer_folder: Path, folder: Path) -> Path:
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


def test_accuracy_of_a_classifier(tokenizer_folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=16, pad_token_id=1, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))  # always "good"
    folder = save(model, tokenizer_folder, tmp_path / "model")
    (tmp_path / "items.csv").write_text("text,label\ngood film,good\nbad film,bad\ngood day,0\n" + "day,good\n" * 37)
    evaluator = accuracy_evaluator(tmp_path / "items.csv")
    candidate = FolderCandidate(folder)
    assert evaluator(candidate) == {"accuracy": 39 / 40}  # type: ignore[arg-type]
    assert candidate.reports == [(0, 31 / 32), (1, 39 / 40)]
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluatorError, match=r"has no classifier\.weight"):
        run(evaluator, folder)


def test_perplexity_of_a_uniform_model_is_its_vocabulary(tokenizer_folder: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=16, pad_token_id=1, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    folder = save(model, tokenizer_folder, tmp_path / "model")
    (tmp_path / "text.txt").write_text("good film bad day " * 10)
    evaluator = perplexity_evaluator(tmp_path / "text.txt")
    assert run(evaluator, folder)["perplexity"] == pytest.approx(7.0, rel=1e-5)
    assert evaluator.lower_is_better == {"perplexity"}
    with pytest.raises(EvaluatorError, match="has no text"):
        (tmp_path / "empty.txt").write_text(" \n")
        perplexity_evaluator(tmp_path / "empty.txt")
