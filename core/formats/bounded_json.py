"""JSON from outside: limited in size and depth, without duplicate keys, and only ever our own error."""

from __future__ import annotations

import json
from typing import NoReturn

from ..errors import CheckpointError

LONGEST_CONFIG_BYTES = 10 * 2**20  # config.json, adapter_config.json
LONGEST_INDEX_BYTES = 100 * 2**20  # model.safetensors.index.json: a line for each tensor


def parse_json_object(data: bytes, name: str, limit: int, *, finite: bool = True) -> dict[str, object]:
    """The object in `data`.

    finite : False lets NaN and Infinity pass: transformers writes them into the config.json of some state-space models

    Raises
    ------
    CheckpointError : longer than `limit`, not UTF-8, not JSON, not an object, nested too
        deeply, or with a key twice; `name` says which file
    """
    if len(data) > limit:
        raise CheckpointError(f"{name}: {len(data)} bytes of JSON, expected at most {limit}")

    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CheckpointError(f"{name}: key {twice[:200]!r} stands there twice; expected once")
        return found

    def no_constant(text: str) -> NoReturn:
        raise CheckpointError(f"{name}: {text} is not JSON; expected a finite number")

    try:
        found = json.loads(
            data.decode(), object_pairs_hook=without_duplicates, parse_constant=no_constant if finite else None
        )
    except CheckpointError:
        raise
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{name}: not valid UTF-8 at byte {error.start}; the file is damaged or no JSON"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{name}: JSON is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and numbers with too many digits
        raise CheckpointError(f"{name}: not valid JSON ({str(error)[:200]})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{name}: expected a JSON object, found {type(found).__name__}")
    return found
