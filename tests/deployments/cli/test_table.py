"""Aligned tables: complete for other programs, and as wide as the terminal otherwise."""

from __future__ import annotations

from eigenmerge.deployments.cli.table import table_lines

ROWS = [("1", "24.6 KB", "model.layers.0.self_attn.q_proj.weight"), ("12", "384 B", "norm")]


def test_columns_are_aligned_and_complete() -> None:
    assert table_lines(("shard", "read", "tensor"), ROWS) == [
        "shard  read     tensor",
        "1      24.6 KB  model.layers.0.self_attn.q_proj.weight",
        "12     384 B    norm",
    ]


def test_only_the_last_column_is_shortened() -> None:
    lines = table_lines(("shard", "read", "tensor"), ROWS, width=34)
    assert lines[1] == "1      24.6 KB  …ttn.q_proj.weight"
    assert all(len(line) <= 34 for line in lines)
    narrow = table_lines(("shard", "read", "tensor"), ROWS, width=10)
    assert narrow[1].startswith("1      24.6 KB  …") and narrow[2] == "12     384 B    norm"


def test_no_rows() -> None:
    assert table_lines(("a", "bc"), []) == ["a  bc"]
