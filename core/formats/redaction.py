"""Removal of credentials from addresses and messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import cast

_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
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
    return _QUERY.sub("?***", _USER_INFO.sub("***@", text))


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
