"""Model references of recipes: a directory, a file, a URL or a Hub id, with `@revision` and `+adapter`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...errors import CheckpointError
from ...formats.redaction import redact
from ..addresses import absolute_uri, is_local, protocol_of
from ..backends.near_paths import near_path

# The rule of the Hub for owner/name: letters, digits, "-", "_", ".".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ParsedReference:
    """The model and the adapter of a reference, as written; `locate_model` gives their addresses."""

    model: str
    adapter: str | None = None


def parse_reference(reference: str) -> list[ParsedReference]:
    """Return the possible meanings of a reference, the most literal first.

    An existing local path is taken literally, whatever characters it contains. Otherwise `+` separates an adapter and
    `@` a Hub revision. A URL with a `+` may be a literal address or a model with an adapter: both are returned.

    Raises
    ------
    CheckpointError : the reference has no meaning
    """
    text = reference.strip()
    if not text or any(ord(char) < 32 for char in text):
        raise CheckpointError(f"model reference {reference[:200]!r} is empty or contains control characters")
    if "+" not in text or (is_local(text) and Path(absolute_uri(text)).exists()):
        return [ParsedReference(text)]
    if not is_local(text):
        model, _, adapter = text.rpartition("+")
        split = [ParsedReference(model, adapter)] if model and adapter else []
        return [ParsedReference(text), *split]
    positions = [index for index, char in enumerate(text) if char == "+" and 0 < index < len(text) - 1]
    for position in positions:
        if Path(absolute_uri(text[:position])).exists():
            return [ParsedReference(text[:position], text[position + 1 :])]
    if not positions:
        raise _no_such_model(text)
    return [ParsedReference(text[: positions[0]], text[positions[0] + 1 :])]


def locate_model(text: str) -> str:
    """Return the absolute address of a model or an adapter.

    Raises
    ------
    CheckpointError : no such local path and not a Hub id, or a revision of a local path
    """
    protocol = protocol_of(text)
    if protocol == "hf":
        return _hub_uri(text.partition("://")[2])
    if protocol not in {"file", "local"}:
        return absolute_uri(text)
    uri = absolute_uri(text)
    if Path(uri).exists():
        return uri
    path, at, revision = text.rpartition("@")
    if at and path and Path(absolute_uri(path)).exists():
        raise CheckpointError(
            f"{text!r}: only models on the Hub have revisions (@{revision}), and {path!r} is a local path;"
            " name the directory of that revision"
        )
    if "://" not in text and _HUB_ID.fullmatch(path if at else text):
        return _hub_uri(text)
    raise _no_such_model(text)


def _hub_uri(name: str) -> str:
    """Return hf://owner/name@revision/rest. A revision with a slash (refs/pr/1) is quoted, as HfFileSystem requires."""
    repository, at, revision = name.strip("/").partition("@")
    if not at or "/" not in revision or "%2F" in revision:
        return f"hf://{repository}{at}{revision}"
    if revision.startswith("refs/"):
        kept = "/".join(revision.split("/")[:3])
        return f"hf://{repository}@{quote(kept, safe='')}{revision[len(kept) :]}"
    return f"hf://{repository}@{revision}"


def _no_such_model(text: str) -> CheckpointError:
    return CheckpointError(
        f"no such model: {redact(text)!r} is not a local file or directory, a URL or a Hub id"
        f"{redact(near_path(text)) or '; correct the path'}"
    )
