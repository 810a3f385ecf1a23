"""Usage errors: one line on standard error that names the option, and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer.main

from eigenmerge.deployments.cli.app import app, main
from eigenmerge.deployments.cli.mergekit_options import _INSTEAD


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["eigenmerge", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "a", "b", "--runner", "dusk"], "'--runner': 'dusk' is not one of 'threads', 'dask', 'ray'; see"),
        (["cache", "du", "--by", "size"], "'--by': 'size' is not one of 'kind', 'run', 'method', 'model'; see"),
        (["deploy", "nomad", "--store", "s"], "'TARGET': 'nomad' is not one of 'process', 'kubernetes', 'ecs'; see"),
        (["merge", "a", "b", "--workers", "0"], "'--workers'"),
        (["merge", "a", "b", "--runnr", "dask"], "No such option: --runnr (Possible options: --runner, "),
        (["merge", "a", "b", "--cuda"], "--cuda is an option of mergekit: write --device cuda"),
        (
            ["merge", "a", "b", "--out-shard-size=2B"],
            "--out-shard-size is an option of mergekit: write `output: {",
        ),
        (["merge", "a", "b", "--random-seed", "3"], "--random-seed is an option of mergekit: write `seed: 1` into"),
        (["plan", "a", "--trust-remote-code"], "--trust-remote-code is an option of mergekit: needs no option here"),
        (["merge", "a"], "Missing argument 'OUT'; see `eigenmerge merge --help`"),
        (["merg"], "No such command 'merg'. Did you mean 'merge'?; see `eigenmerge --help`"),
        (["cache", "gc", "--older-than", "soon"], "--older-than 'soon': expected a number and s, m, h, d or w"),
        (["plan", "no-such-file.yml"], "no-such-file.yml: recipe cannot be read: No such file or directory"),
        (["plan", "x: 1", "--max-memory", "much"], "--max-memory is 'much'; expected a size"),
    ],
)
def test_a_wrong_word_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments, monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("eigenmerge: error: ") and message in line


@pytest.mark.parametrize("arguments", [[], ["cache"]])
def test_no_subcommand_prints_help(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments, monkeypatch) == 2
    assert " ".join(["Usage: eigenmerge", *arguments, "[OPTIONS] COMMAND"]) in capsys.readouterr().out


def test_no_option_of_ours_is_taken_for_one_of_mergekit() -> None:
    command = typer.main.get_command(app)
    own = {
        option.lstrip("-")
        for one in command.commands.values()
        for parameter in one.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    # The only ones that both have are accepted where they mean something.
    assert own & set(_INSTEAD) == {"allow-crimes", "trust-remote-code"}


def test_all_faults_of_a_recipe_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("merge_method: swudi\nmodels: [a]\nparameters: {exp_tme: 1}\ndtpye: x\nlm_head: q\n")
    assert run(["plan", str(recipe)], monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{recipe}: 3 faults: (1) unknown key 'dtpye'; did you mean 'dtype'?; (2) lm_head: " in line
    assert "(3) parameters.exp_tme: swudi has no such parameter; did you mean 'exp_time'?" in line


def test_the_nearest_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "models" / "math").mkdir(parents=True)
    (tmp_path / "recipe.yml").write_text("merge_method: swudi\n")
    for arguments, near in (
        (["plan", f"{tmp_path}/recpie.yml"], f"{tmp_path}/recipe.yml"),
        (["inspect", f"{tmp_path}/modles/math"], f"{tmp_path}/models/math"),
        (["inspect", f"{tmp_path}/models/mth"], f"{tmp_path}/models/math"),
    ):
        assert run(arguments, monkeypatch) in (1, 2)
        assert capsys.readouterr().err.endswith(f"; did you mean {near}?\n")
    run(["inspect", f"{tmp_path}/models/code"], monkeypatch)
    assert f"; {tmp_path}/models exists, and has no 'code'" in capsys.readouterr().err


def test_the_page_lists_the_options_of_mergekit() -> None:
    page = (Path(__file__).parents[3] / "docs" / "mergekit.md").read_text()
    assert all(f"| `--{name}` | {instead} |" in page for name, instead in _INSTEAD.items())
