"""Requests to this machine do not go through a proxy: servers here are Prefect's and those of local object stores."""

from __future__ import annotations

import os

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def loopback_without_proxy() -> dict[str, str]:
    """Return NO_PROXY in both spellings, so that no proxy of the environment receives requests to this machine."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host for host in (part.strip() for part in given.split(",")) if host]
    if "*" in hosts:
        return {}
    value = ",".join(hosts + [host for host in _LOOPBACK if host not in hosts])
    return {"NO_PROXY": value, "no_proxy": value}
