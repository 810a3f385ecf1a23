"""Parser for JSON from outside: limits size, number of values and depth, and raises CheckpointError only."""

from __future__ import annotations

import json
import math
from typing import NoReturn, cast

from ..errors import CheckpointError

LONGEST_CONFIG_BYTES = 10 * 2**20  # config.json, adapter_config.json
LONGEST_INDEX_BYTES = 100 * 2**20  # model.safetensors.index.json: one line per tensor

# A value takes up to 250 bytes of memory and 3 bytes of text. The largest real files, headers and indices of mixtures
# with 100,000 tensors, have a million.
_MOST_VALUES = 2_000_000
_MOST_DIGITS = 100  # tokenizer_config.json has model_max_length of 31 digits


def parse_json_object(
    data: bytes, name: str, limit: int, *, finite: bool = True, most_values: int = _MOST_VALUES
) -> dict[str, object]:
    """Parse `data` as a JSON object; parameters as `parse_json`.

    Raises
    ------
    CheckpointError : as `parse_json`, or not an object
    """
    found = parse_json(data, name, limit, finite=finite, most_values=most_values)
    if not isinstance(found, dict):
        raise CheckpointError(f"{name}: expected a JSON object, found {type(found).__name__}")
    return cast("dict[str, object]", found)


def check_json_size(data: bytes, name: str, limit: int, most_values: int = _MOST_VALUES) -> None:
    """Check that `parse_json` would accept the size of `data`. Parameters as there.

    Raises
    ------
    CheckpointError : longer than `limit`, or more than `most_values`
    """
    if len(data) > limit:
        raise CheckpointError(f"{name}: {len(data)} bytes of JSON, expected at most {limit}")
    num_values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if num_values > most_values:
        raise CheckpointError(f"{name}: about {num_values} values of JSON, expected at most {most_values}")


def parse_json(data: bytes, name: str, limit: int, *, finite: bool = True, most_values: int = _MOST_VALUES) -> object:
    """Parse `data` as JSON.

    Parameters
    ----------
    data : bytes, UTF-8
    name : str
        The file, for messages
    limit : int
        Maximum length of `data`
    finite : bool
        False accepts NaN and Infinity: transformers writes them into the config.json of some state-space models
    most_values : int
        Maximum number of commas and opening brackets, which bounds the memory that the values take

    Raises
    ------
    CheckpointError : longer than `limit`, more than `most_values`, not UTF-8, not JSON, nested too deeply, a duplicate
        key, or a number of more than 100 digits
    """
    check_json_size(data, name, limit, most_values)

    def reject_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CheckpointError(f"{name}: duplicate key {duplicate[:200]!r}; expected each key once")
        return found

    def parse_integer(text: str) -> int:
        if len(text) > _MOST_DIGITS:
            raise CheckpointError(f"{name}: a number of {len(text)} digits, expected at most {_MOST_DIGITS}")
        return int(text)

    def parse_real(text: str) -> float:
        number = float(text)
        if finite and not math.isfinite(number):
            raise CheckpointError(f"{name}: {text[:40]} is too large; expected a finite number")
        return number

    def reject_constant(text: str) -> NoReturn:
        raise CheckpointError(f"{name}: {text} is not JSON; expected a finite number")

    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=reject_duplicates,
            parse_constant=reject_constant if finite else None,
            parse_int=parse_integer,
            parse_float=parse_real,
        )
    except CheckpointError:
        raise
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{name}: invalid UTF-8 at byte {error.start}, expected JSON; the file is damaged or not JSON"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{name}: JSON is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and numbers with too many digits
        raise CheckpointError(f"{name}: not valid JSON ({str(error)[:200]})") from None
