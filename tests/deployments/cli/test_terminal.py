"""What commands print: escaped, one line for one line, and also where the terminal cannot show a letter."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import pytest

from eigenmerge.deployments.cli.table import table_lines
from eigenmerge.deployments.cli.terminal import show, show_error, show_json

ROOT = Path(__file__).parents[3]
HOSTILE = "a\x1b[31m\nb\u202ec\x9b2J[red]\r"
SHOWN = "a\\x1b[31m\\nb\\u202ec\\x9b2J[red]\\r"


def test_names_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(HOSTILE, "second")
    show_error(HOSTILE)
    show_json({"name": HOSTILE})
    found = capsys.readouterr()
    text = found.out.splitlines()
    assert text[:2] == [SHOWN, "second"]
    assert found.err == f"eigenmerge: {SHOWN}\n"
    assert json.loads("\n".join(text[2:])) == {"name": HOSTILE} and found.out.isascii()


def test_columns_are_as_wide_as_what_is_shown() -> None:
    header, first, second = table_lines(("name", "size"), [(HOSTILE, "1"), ("b", "2")])
    assert first == f"{SHOWN}  1"
    assert header.index("size") == second.index("2") == len(SHOWN) + 2


def test_letters_that_the_terminal_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    show("模型")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u6a21\\u578b\n"  # type: ignore[attr-defined]


def test_nothing_else_prints() -> None:
    """`print` and writes to the standard streams are in terminal.py alone."""
    found = []
    for folder in ("core", "tasks", "flows", "deployments"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if called in ("print", "typer.echo", "sys.stdout.write", "sys.stderr.write", "warnings.warn"):
                    found.append(path.relative_to(ROOT).as_posix())
    assert set(found) == {"deployments/cli/terminal.py"}
