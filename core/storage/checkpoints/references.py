"""How a recipe names a model: a directory, a file, a URL, a Hub id, `@revision`, `base+adapter`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ...errors import CheckpointError
from ...formats.redaction import redact
from ..addresses import absolute_uri, is_local, protocol_of

# As the Hub's own rule: owner/name, or one bare name for the oldest models, of letters, digits, "-", "_", ".".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ParsedReference:
    """The parts of a reference, as written; `place` says where each is."""

    model: str
    adapter: str | None = None


def parse_reference(reference: str) -> list[ParsedReference]:
    """What `reference` may mean, the most literal reading first.

    A local path that exists is taken literally, whatever signs it holds. Otherwise `+` separates an adapter and `@` a
    Hub revision. A URL with a `+` is first tried as it stands.

    Raises
    ------
    CheckpointError : nothing that could be meant
    """
    text = reference.strip()
    if not text or any(ord(char) < 32 for char in text):
        raise CheckpointError(f"model reference {reference[:200]!r} is empty or holds control characters")
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
    """The absolute URI of one part.

    Raises
    ------
    CheckpointError : it is not there, or a revision is given for a place that has none
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
            f"{text!r}: a revision (@{revision}) can only be given for Hub models, and {path!r} is local;"
            f" name the directory of that revision instead"
        )
    if "://" not in text and _HUB_ID.fullmatch(path if at else text):
        return _hub_uri(text)
    raise _no_such_model(text)


def _hub_uri(name: str) -> str:
    """hf://owner/name@revision/rest; a revision with a slash (refs/pr/1) is quoted, as HfFileSystem wants."""
    repository, at, revision = name.strip("/").partition("@")
    if not at or "/" not in revision or "%2F" in revision:
        return f"hf://{repository}{at}{revision}"
    if revision.startswith("refs/"):
        kept = "/".join(revision.split("/")[:3])
        return f"hf://{repository}@{quote(kept, safe='')}{revision[len(kept) :]}"
    return f"hf://{repository}@{revision}"


def _no_such_model(text: str) -> CheckpointError:
    return CheckpointError(
        f"no such model: {redact(text)!r} is not a file or directory here, nor a URL or Hub id; correct the path"
    )
