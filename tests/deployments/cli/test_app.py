"""Usage errors: one line on standard error that names the option, and exit code 2."""

from __future__ import annotations

import sys

import pytest

from eigenmerge.deployments.cli.app import main


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
