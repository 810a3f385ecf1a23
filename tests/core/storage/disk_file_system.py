"""An fsspec file system under a protocol of its own, as a third-party package would register one."""

from __future__ import annotations

import fsspec
from fsspec.implementations.local import LocalFileSystem


class DiskFileSystem(LocalFileSystem):
    """Local files as testdisk://path. As with sftp://, a file is visible while it is written."""

    protocol = "testdisk"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("testdisk://"))


def register() -> None:
    """Make testdisk:// known to fsspec in this process."""
    fsspec.register_implementation("testdisk", DiskFileSystem, clobber=True)
