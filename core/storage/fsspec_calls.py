"""Typed access to the functions of fsspec that storage uses; fsspec itself has no type annotations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
from fsspec.asyn import sync  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from fsspec.registry import known_implementations  # pyright: ignore[reportMissingTypeStubs]

Result = TypeVar("Result")

_fsspec = cast(Any, fsspec)


def is_protocol(name: str) -> bool:
    """Return whether fsspec has a file system for this protocol."""
    return name in known_implementations


def open_file_system(uri: str, options: Mapping[str, object]) -> tuple[Any, str]:
    """Return the file system for an address, and the path of the address within it.

    Raises
    ------
    ImportError : the file system needs a package that is not installed
    ValueError : unknown protocol
    """
    return _fsspec.core.url_to_fs(uri, **options)


def open_s3_file_system(options: Mapping[str, object]) -> Any:
    """Return an s3fs file system."""
    return _fsspec.filesystem("s3", **options)


def run_coroutine(file_system: Any, function: Callable[[], Awaitable[Result]]) -> Result:
    """Run a coroutine function in the event loop of a file system, and wait for its result."""
    return cast(Any, sync)(file_system.loop, function)


def put_in_memory(file_system: Any, path: str, data: bytes) -> bool:
    """Create a file in fsspec's memory file system if there is none at `path`, and return whether it was created.

    fsspec's own exclusive creation checks first and stores then, so two threads can both succeed.
    """
    from fsspec.implementations.memory import MemoryFile  # pyright: ignore[reportMissingTypeStubs]

    path = file_system._strip_protocol(path)
    file = cast(Any, MemoryFile)(file_system, path, data)
    return file_system.store.setdefault(path, file) is file  # setdefault is atomic
