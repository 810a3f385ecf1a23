"""`eigenmerge verify` loads a checkpoint, and says what it could not check."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ...small_models import add_tokenizer

MANIFEST = "eigenmerge_manifest.json"


class Done:
    """What a command printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process."""

    def run(*arguments: str) -> Done:
        from eigenmerge.deployments.cli.app import main

        monkeypatch.setattr(sys, "argv", ["eigenmerge", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        return Done(int(stop.value.code or 0), found.out, found.err)

    return run


@pytest.fixture
def loadable(make_models: Any, pipeline: Any, tmp_path: Path) -> Path:
    """A checkpoint with a tokenizer that transformers can load."""
    models = make_models(num_experts=2, layers=1)
    for folder in (models.base, *models.experts):
        add_tokenizer(folder)
    pipeline(models.write_recipe("swudi"), tmp_path / "out", store=str(tmp_path / "store"))
    return tmp_path / "out"


def test_a_checkpoint_is_loaded_as_its_users_do(loadable: Path, cli: Cli) -> None:
    done = cli("verify", str(loadable), "--generate", "4")
    assert done.code == 0 and not done.err, done.out + done.err
    for line in (
        "values: ok (no NaN or Inf in 12 tensors)",
        "keys: ok (LlamaForCausalLM loads all 12)",
        "tokenizer: ok (",
        "generation: ok (4 tokens: ",
        "perplexity: ok (",
    ):
        assert f"\n{line}" in done.out, done.out
    (loadable / "config.json").write_text((loadable / "config.json").read_text().replace("llama", "gpt_own"))
    done = cli("verify", str(loadable), "--sample", "0", "--perplexity")
    assert done.code == 1 and "not checked: keys: transformers " in done.out and "damaged: config.json" in done.out


def test_a_checkpoint_of_another_program_is_only_loaded(loadable: Path, cli: Cli) -> None:
    (loadable / MANIFEST).unlink()
    done = cli("verify", str(loadable))
    assert done.code == 0 and "not checked: files and tensors, because there is no " in done.out, done.out + done.err
    assert cli("verify", str(loadable), "--sample", "1").code == 2
    assert cli("verify", str(loadable), "--no-load").code == 1
    weights = bytearray((loadable / "model.safetensors").read_bytes())
    weights[-4:] = b"\xff\xff\xff\xff"
    (loadable / "model.safetensors").write_bytes(weights)
    done = cli("verify", str(loadable))
    assert done.code == 1 and "damaged: model.norm.weight: has 1 NaN and 0 Inf" in done.out, done.out
