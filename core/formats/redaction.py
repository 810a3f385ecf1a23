"""Removal of credentials from addresses and messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import cast
from urllib.parse import unquote

_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
# scheme://user:password@, where the password may contain a slash, "@" and "%". One slash: a Path joins the two. Not a
# port: 1 to 5 digits before a slash or the end.
_PASSWORD = re.compile(
    r"(?<![a-z0-9+.-])(?P<scheme>[a-z][a-z0-9+.-]*:/+)[^\s/:@]*:"
    r"(?!\d{1,5}(?:[/?#'\"\s]|$))[^\s]*@",
    re.IGNORECASE,
)
_QUERY = re.compile(r"\?[^\s'\"]*(?:signature|token|credential|key|secret|password|sig)=[^\s'\"]*", re.IGNORECASE)
# Options whose values are addresses or names that help in a message. Every other string is treated as a secret.
_PUBLIC_OPTIONS = frozenset(
    {
        "endpoint_url",
        "endpoint",
        "region",
        "region_name",
        "profile",
        "profile_name",
        "protocol",
        "project",
        "addressing_style",
        "signature_version",
        "anon",
        "mode",
        "host",
        "account_name",
        "repo_type",
        "revision",
    }
)
_SHORTEST_SECRET = 6  # replacing "1" or "test" everywhere would make messages unreadable


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Remove user:password@, signed query strings and the given secrets from `text`."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _PASSWORD.sub(r"\g<scheme>***@", text)
    return _QUERY.sub("?***", _USER_INFO.sub("***@", text))


def redact_strings(value: object) -> object:
    """Return JSON data with the credentials of addresses removed from all its strings."""
    if isinstance(value, Mapping):
        return {name: redact_strings(inner) for name, inner in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [redact_strings(inner) for inner in cast("list[object]", value)]
    return redact(value) if isinstance(value, str) else value


def has_password(text: str) -> bool:
    """Return whether a text has an address with user:password@, also percent-encoded."""
    return _PASSWORD.search(text) is not None or ("%" in text and _PASSWORD.search(unquote(text)) is not None)


def find_secrets(options: Mapping[str, object] | None) -> tuple[str, ...]:
    """Return every string among the storage options that may be a credential, longest first."""
    found: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, Mapping):
            for name, inner in cast("Mapping[str, object]", value).items():
                if name not in _PUBLIC_OPTIONS:
                    collect(inner)
        elif isinstance(value, list | tuple):
            for inner in cast("list[object] | tuple[object, ...]", value):
                collect(inner)
        elif isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
            found.add(value)

    collect(options or {})
    return tuple(sorted(found, key=len, reverse=True))
