"""Functions on addresses: the protocol, the absolute form, and the storage options that apply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ..errors import StoreError
from ..formats.redaction import has_password, redact
from .fsspec_calls import is_protocol

# These take no options: nothing on this machine has credentials.
_WITHOUT_OPTIONS = frozenset({"file", "local", "memory"})
# Flat options may hold credentials of an object store; they are not sent to these.
_ONLY_NAMED_OPTIONS = frozenset({"hf", "http", "https"})


def protocol_of(uri: str) -> str:
    """Return the protocol of an address: "s3" for "s3://bucket/x", "file" for a plain path."""
    protocol, separator, _ = uri.partition("://")
    return protocol.lower() if separator else "file"


def is_local(uri: str) -> bool:
    """Return whether the address is a path on this machine."""
    return protocol_of(uri) in {"file", "local"}


def is_web(uri: str) -> bool:
    """Return whether the address is on a web server: it may have a query string, which belongs to every file there."""
    return protocol_of(uri) in {"http", "https"}


def join_address(root: str, name: str) -> str:
    """Return the address of a file below `root`, before the query string of a web address."""
    path, mark, query = root.partition("?") if is_web(root) else (root, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def split_address(uri: str) -> tuple[str, str]:
    """Return the address of the folder and the name of a file: the reverse of `join_address`."""
    path, mark, query = uri.partition("?") if is_web(uri) else (uri, "", "")
    folder, _, name = path.rpartition("/")
    return (folder + mark + query if folder else ""), name


def public_url(uri: str) -> str:
    """Return the address of a file on a web server without credentials and query; "" for other addresses."""
    if not is_web(uri):
        return ""
    protocol, _, rest = uri.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{protocol.lower()}://{host.rpartition('@')[2]}{slash}{path}"


def absolute_uri(uri: str) -> str:
    """Return the address in a form that is valid in every process: local paths become absolute.

    Raises
    ------
    StoreError : the address is empty, contains a control character, or credentials
    """
    if not uri or any(ord(char) < 32 for char in uri):
        raise StoreError(f"{redact(uri)!r} is not an address; expected a directory or a URL such as s3://bucket/prefix")
    if has_password(uri):  # a library would show a part of them in its errors
        raise StoreError(f"{redact(uri)}: contains credentials; put them into storage_options or the environment")
    if is_web(uri):
        path, mark, query = uri.partition("#")[0].partition("?")
        return path.rstrip("/") + mark + query
    if not is_local(uri):
        return uri.rstrip("/") if not uri.endswith("://") else uri
    # Percent signs are kept, as fsspec does. Symbolic links are kept too: messages show the path that the user gave.
    return str(Path(uri.partition("://")[2] if "://" in uri else uri).expanduser().absolute())


def select_options(uri: str, storage_options: Mapping[str, object] | None) -> dict[str, object]:
    """Return the options that apply to this address.

    Parameters
    ----------
    storage_options : mapping, optional
        One mapping per protocol, {"s3": {...}, "gs": {...}}, or flat. Flat options apply to object stores only (S3,
        GCS, Azure, ...): they may hold credentials, which the Hub and web servers must not receive.
    """
    protocol = protocol_of(uri)
    if protocol in _WITHOUT_OPTIONS or not storage_options:
        return {}
    if all(is_protocol(name) and isinstance(value, Mapping) for name, value in storage_options.items()):
        by_protocol = cast("Mapping[str, Mapping[str, object]]", storage_options)
        return dict(by_protocol.get(protocol, {}))
    return {} if protocol in _ONLY_NAMED_OPTIONS else dict(storage_options)
