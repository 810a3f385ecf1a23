"""The kind of a weight by its name: query, key, value, output, gate, up, down; for colors and rows of the report."""

from __future__ import annotations

import re
from functools import lru_cache

from ...planning.names import layer_of

#: In the order of the legend.
KINDS = ("query", "key", "value", "output", "gate", "up", "down", "qkv", "embedding", "other")

# The first pattern that a name without its layer matches decides: attention before the feed-forward network, because
# both have a part "output.dense" in BERT.
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("embedding", r"(^|\.)(\w*embed\w*|wte|wpe|lm_head|shared)(\.|$)"),
        ("qkv", r"(^|[._])(qkv|query_key_value|c_attn|wqkv|in_proj|w_pack)(_|\.|$)"),
        ("query", r"(^|\.)(q_proj|query|wq|to_q|q_lin|q|q_[ab]_proj|linear_q)(\.|$)"),
        ("key", r"(^|\.)(k_proj|key|wk|to_k|k_lin|k|linear_k|kv_[ab]_proj\w*)(\.|$)"),
        ("value", r"(^|\.)(v_proj|value|wv|to_v|v_lin|v|linear_v)(\.|$)"),
        ("output", r"(^|\.)(o_proj|out_proj|wo|to_out|out_lin|o|linear_out)(\.|$)"),
        ("output", r"(^|\.)\w*att\w*\.(output\.)?(dense|c_proj|proj|out)(\.|$)"),
        ("gate", r"(^|[._])(gate_up_proj|gate_proj|gate|w1|wi_0)(\.|$)"),
        ("up", r"(^|\.)(up_proj|intermediate\.dense|fc1|c_fc|lin1|w3|wi|wi_1|dense_h_to_4h)(\.|$)"),
        ("down", r"(^|\.)(down_proj|output\.dense|fc2|c_proj|lin2|w2|dense_4h_to_h)(\.|$)"),
    )
)
_NUMBERS = re.compile(r"(?<![^.])\d+(?![^.])")
_ENDS = (".weight", ".kernel")


def kind_of(name: str) -> str:
    """Return the kind of a tensor."""
    return _kind_of_row(row_of(name))


def row_of(name: str) -> str:
    """Return the name of the same weight in every layer, "self_attn.q_proj", with other numbers as stars."""
    found = layer_of(name)
    rest = name if found is None else name[len(f"{found[0]}.{found[1]}.") :]
    for end in _ENDS:
        rest = rest.removesuffix(end)
    return _NUMBERS.sub("*", rest)


def stack_of(name: str) -> str | None:
    """Return the name of the stack of layers, "model.layers"; None outside of layers."""
    found = layer_of(name)
    return None if found is None else found[0]


def depth_of(name: str) -> int | None:
    """Return the number of the layer; None outside of layers."""
    found = layer_of(name)
    return None if found is None else found[1]


@lru_cache(maxsize=4096)
def _kind_of_row(row: str) -> str:
    return next((kind for kind, pattern in _PATTERNS if pattern.search(row.lower())), "other")
