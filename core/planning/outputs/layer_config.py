"""config.json of a model whose layers are those of slices: which of its entries describe single layers, and how.

    layer_types, num_key_value_heads, block_configs   a list, or a string of letters, with one entry for each layer
    moe_layers, mlp_only_layers, full_attn_idxs       a list of layer indices
    attention_types                                   [[entries, number of repetitions], ...]
    first_k_dense_replace, num_dense_layers           the number of first layers
    decoder_sparse_step, full_attention_interval      a period: the index of a layer modulo the period

Lists follow the layers. The number of first layers and a period can describe the new order of layers or not; if not,
the merge is refused, because the loaded model would give wrong outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

from ...errors import RecipeError

# Keys of config.json for the number of layers; which one is used depends on the architecture.
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

_INDEX_LIST = re.compile(r"layers?$|_at$|layers?_i|idx|indices|indexes|layer_ids")
_ENTRIES = re.compile(r"types?$|pattern|freq|no_rope|type_list")  # 0 or 1 for each layer, not indices
_FIRST = re.compile(r"^(num_)?first_\w*(dense|layers|k_)|^(num|n)_dense_layers$|^num_hash_layers$|^max_window_layers$")
_LAST = re.compile(r"^num_kv_shared_layers$|^num_last_\w*layers$")
_PERIOD = re.compile(
    r"every_n|_sparse_step$|sliding_window_pattern$"
    r"|(layer|attn|attention|moe|expert|rope|global|full|block)\w*_(period|interval|step|freq|frequency|stride)$"
)
# A list by layers, if config.json has one, has precedence over these.
_REPLACED = {
    "layer_types": re.compile(r"interval$|sliding_window_pattern$|every_n|^max_window_layers$|attn_layer_period$"),
    "no_rope_layers": re.compile(r"^no_rope_layer_interval$"),
    "mlp_layer_types": re.compile(r"^first_k|sparse_step$|^num_dense_layers$"),
    "moe_layers": re.compile(r"^interleave_moe_layer_step$"),
}


def config_of_layers(config: Mapping[str, object], depth: int, origins: Sequence[int]) -> dict[str, object]:
    """Return the entries of config.json that change, except the number of layers.

    Parameters
    ----------
    depth : number of layers that `config` describes
    origins : for each layer of the output, the layer of `config` that it is

    Raises
    ------
    RecipeError : an entry cannot describe the new order of layers; names its key
    """
    if list(origins) == list(range(depth)):
        return {}
    return _LayerConfig(config, depth, origins).changes()


class _LayerConfig:
    def __init__(self, config: Mapping[str, object], depth: int, origins: Sequence[int], place: str = "") -> None:
        self._config = config
        self._depth = depth
        self._origins = origins
        self._place = place
        listed = [self._indices(key, value) for key, value in config.items()]
        self._first_index = 1 if any(found and max(found) == depth for found in listed) else 0

    def changes(self) -> dict[str, object]:
        """Return the entries that differ, nested ones included."""
        changes: dict[str, object] = {}
        for key, value in self._config.items():
            if key in DEPTH_KEYS:
                continue
            if isinstance(value, Mapping):
                part = cast("Mapping[str, object]", value)
                if not any(name in part for name in DEPTH_KEYS):  # else a model of its own, such as a vision tower
                    inner = _LayerConfig(part, self._depth, self._origins, f"{self._place}{key}.").changes()
                    if inner:
                        changes[key] = {**part, **inner}
                continue
            changed = self._changed(key, value)
            if changed != value:
                changes[key] = changed
        return changes

    def _changed(self, key: str, value: object) -> object:
        indices = self._indices(key, value)
        if indices is not None:
            chosen = {index - self._first_index for index in indices}
            return [new + self._first_index for new, origin in enumerate(self._origins) if origin in chosen]
        if isinstance(value, list):
            entries = cast("list[object]", value)
            if len(entries) == self._depth:
                return [entries[origin] for origin in self._origins]
            repeated = _expand(entries)
            if repeated is not None and len(repeated) == self._depth:
                return [[[repeated[origin] for origin in self._origins], 1]]
            return entries
        if isinstance(value, str):
            is_pattern = "pattern" in key and len(value) == self._depth
            return "".join(value[origin] for origin in self._origins) if is_pattern else value
        if type(value) is int and not self._is_replaced(key):
            return self._number(key, value)
        return value

    def _indices(self, key: str, value: object) -> list[int] | None:
        """Return the layers that a list names by index; None for another value."""
        if not isinstance(value, list) or not _INDEX_LIST.search(key):
            return None
        numbers = [number for number in cast("list[object]", value) if type(number) is int]
        if len(numbers) < len(cast("list[object]", value)) or not numbers:
            return None
        if len(numbers) == self._depth and (set(numbers) <= {0, 1} and (_ENTRIES.search(key) or self._depth > 2)):
            return None
        is_ascending = all(one < other for one, other in pairwise(numbers))
        return numbers if is_ascending and numbers[0] >= 0 and numbers[-1] <= self._depth else None

    def _is_replaced(self, key: str) -> bool:
        return any(
            isinstance(self._config.get(name), list) and pattern.search(key) for name, pattern in _REPLACED.items()
        )

    def _number(self, key: str, value: int) -> int:
        if key == "max_window_layers" and not self._config.get("use_sliding_window"):
            return value
        if key == "moe_layer_start_index":
            return self._leading(key, value, value)
        if key == "moe_layer_end_index" and value >= 0:
            return self._leading(key, value, value + 1) - 1
        if _FIRST.search(key):
            return self._leading(key, value, value)
        if _LAST.search(key) and value:
            chosen = [origin >= self._depth - value for origin in self._origins]
            count = sum(chosen)
            if chosen != [False] * (len(chosen) - count) + [True] * count:
                raise self._error(key, value, "which counts the last layers")
            return count
        if _PERIOD.search(key) and value > 1:
            moved = next((new for new, origin in enumerate(self._origins) if (new - origin) % value), None)
            if moved is not None:
                raise self._error(
                    key, value, f"a period, and layer {self._origins[moved]} becomes layer {moved} of the output"
                )
        return value

    def _leading(self, key: str, value: int, count: int) -> int:
        """Return how many of the first `count` layers the output begins with."""
        chosen = [origin < count for origin in self._origins]
        found = sum(chosen)
        if chosen != [True] * found + [False] * (len(chosen) - found):
            place = chosen.index(False)
            late = place + chosen[place:].index(True)
            raise self._error(
                key, value, f"which counts the first layers, and layer {self._origins[late]} becomes layer {late}"
            )
        # Where all layers are of this kind, the number stays as large as it was.
        return found if found < len(chosen) or count <= found else count

    def _error(self, key: str, value: object, reason: str) -> RecipeError:
        return RecipeError(
            f"slices: {self._place}{key} in config.json is {value!r}, {reason}; choose layers that keep their kind"
        )


def _expand(entries: list[object]) -> list[object] | None:
    """Return the entries of [[entries, number of repetitions], ...]; None for another form."""
    found: list[object] = []
    for item in entries:
        pair = cast("list[object]", item) if isinstance(item, list) else []
        if len(pair) != 2 or not isinstance(pair[0], list) or type(pair[1]) is not int or not 0 < pair[1] < 10_000:
            return None
        found += cast("list[object]", pair[0]) * pair[1]
    return found or None
