"""Addresses of places: protocol, absolute form, and which storage options are meant for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fsspec.registry import known_implementations

from ..errors import StoreError
from ..formats.redaction import redact


def protocol_of(uri: str) -> str:
    """ "s3" of "s3://bucket/x", "file" of a plain path."""
    protocol, separator, _ = uri.partition("://")
    return protocol.lower() if separator else "file"


def is_local(uri: str) -> bool:
    return protocol_of(uri) in {"file", "local"}


def absolute_uri(uri: str) -> str:
    """`uri` in the form that means the same in every process: local places become absolute paths.

    Raises
    ------
    StoreError : an empty address, or one with a control character
    """
    if not uri or any(ord(char) < 32 for char in uri):
        raise StoreError(f"{redact(uri)!r} is not an address; expected a directory or a URL such as s3://bucket/prefix")
    if not is_local(uri):
        return uri.rstrip("/") if not uri.endswith("://") else uri
    # Not unquoted, as fsspec does. Not resolve(): a store behind a symbolic link keeps the name the user gave it.
    return str(Path(uri.partition("://")[2] if "://" in uri else uri).expanduser().absolute())


def options_for(uri: str, storage_options: Mapping[str, object] | None) -> dict[str, object]:
    """The options meant for this place.

    `storage_options` either has one mapping per protocol, {"s3": {...}, "gs": {...}}, or is flat. Flat options are for
    the object stores of a run (S3, GCS, Azure, ...) and are never sent to the Hub or to web servers, which have no
    business with their tokens. Local disk and memory take none.
    """
    protocol = protocol_of(uri)
    options = dict(storage_options or {})
    if protocol in {"file", "local", "memory"}:
        return {}
    if options and all(name in known_implementations and isinstance(value, Mapping) for name, value in options.items()):
        chosen = options.get(protocol, {})
        return dict(chosen) if isinstance(chosen, Mapping) else {}
    return {} if protocol in {"hf", "http", "https"} else options
