"""A model whose folder, tensors and configuration have hostile names: plan, inspect, merge, card, pages and errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import save_file

from eigenmerge.core.cache.reports import ShardReport, TensorReport
from eigenmerge.core.errors import CheckpointError

FOLDER = "x\x1b[31m\u202e [red]`](javascript:1)<img src=x>|*a*\nb"
MODEL = "\u202e\u2066 [red]`](javascript:1)<img src=x>|*a* ![b](https://evil.example)"
TENSOR = "layers.0.[link=http:x]<script>`a`|![b](c).weight"

Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process, without Prefect; returns the exit code and all that was printed."""

    def run(*arguments: str) -> tuple[int, str]:
        from eigenmerge.deployments.cli.app import main

        monkeypatch.setattr(sys, "argv", ["eigenmerge", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        return int(stop.value.code or 0), found.out + found.err

    return run


def save(folder: Path, shift: float, tensor: str = TENSOR) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 4, generator=generator) + shift * torch.eye(4)
    save_file({tensor: weight, "norm.weight": torch.ones(4)}, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["A\x1b[2J\u2066"], "model_type": "x", "auto_map": {"AutoModel": "m.A"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_clean(text: str) -> None:
    bad = {char for char in text if not char.isprintable() and char != "\n"}
    assert not bad, text


def assert_inactive(html: str) -> None:
    assert not [tag for tag in ("<a ", "<img", "<script", "<em>") if tag in html], html


def test_a_whole_merge(tmp_path: Path, cli: Cli) -> None:
    base, expert = save(tmp_path / "base", 0.0), save(tmp_path / MODEL.replace("/", ":"), 0.1)
    recipe = tmp_path / "recipe.yaml"
    content = {"merge_method": "swudi", "base_model": str(base), "models": [str(expert)]}
    recipe.write_text(yaml.safe_dump(content))
    out, store = tmp_path / "out", str(tmp_path / "store")
    for arguments in (
        ("plan", str(recipe), "--tensors"),
        ("plan", str(recipe), "--json"),
        ("inspect", str(expert), "--tensors"),
        ("merge", "--no-prefect", "--store", store, str(recipe), str(out)),
        ("cache", "ls", "--store", store),
        ("cache", "du", "--store", store, "--by", "model"),
        ("verify", str(out), "--no-load"),
    ):
        code, text = cli(*arguments)
        assert code == 0 and len(text) > 50, text
        assert_clean(text)
    card = (out / "README.md").read_text()
    assert_clean(card)
    html = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    assert_inactive(html.replace('<a href="https://pypi.org/project/eigenmerge/">', ""))
    assert_clean((out / "eigenmerge_manifest.json").read_text())


@pytest.mark.parametrize("name", [FOLDER, "a\x1b[31mred", "\u202ereversed", "two\nlines"])
def test_error_lines(tmp_path: Path, cli: Cli, name: str) -> None:
    for arguments in (("inspect", name), ("verify", name), (name,), ("merge", "--device", name, "r", "o")):
        code, text = cli(*arguments)
        assert code != 0 and text.count("\n") == 1 and text.startswith("eigenmerge: error: ")
        assert_clean(text)
    hostile, usual = save(tmp_path / "hostile", 0.0, tensor=f"layers.{name}"), save(tmp_path / "usual", 0.0)
    for base, expert in ((hostile, usual), (usual, hostile)):
        code, text = cli("plan", f"{{merge_method: ties, base_model: {base}, models: [{expert}]}}")
        assert "tensor" in text and (code == 1 or base == usual)
        assert_clean(text)


def test_pages_of_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    from eigenmerge.flows import prefect_report
    from eigenmerge.flows.nightly import skipped_rows

    sent: list[Any] = []

    class Server:
        answers = False

        def report(self, _: object, *values: object) -> None:
            sent.append(values)

        def try_again(self) -> None: ...

    tensors = (TensorReport(TENSOR + "\x1b\u202e", "merge", "ties\n<b>", 0.1, "0"),)
    report: Any = prefect_report.PrefectReport(Server())  # type: ignore[arg-type]
    report.shard_done(ShardReport(0, "parts/0", 10, 8, "0", "", 0.1, 100, tensors))
    facts = dict.fromkeys(("shards_done", "shards_reused", "decompositions_computed", "decompositions_reused"), 1)
    numbers = {"num_experts": 1, "bytes_read": 1, "bytes_written": 1, "seconds": 1.0}
    result: Any = type(
        "Result", (), {**facts, **numbers, "destination": FOLDER, "method": "t`ies", "warnings": (FOLDER,)}
    )
    report.finished(result)
    rows, summary = sent[0][0], sent[1][0]
    assert_clean(summary)
    assert_inactive(MarkdownIt("commonmark").render(summary))
    for row in [*rows, *skipped_rows({"a": FOLDER, FOLDER: str(CheckpointError(FOLDER))})]:
        for cell in row.values():
            text = str(cell)
            assert "\n" not in text
            assert_clean(text)
            assert_inactive(MarkdownIt("commonmark").renderInline(text))
