"""The files of a model in a directory of this machine, because transformers reads no other place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ...formats.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME, INDEX_NAME
from ...storage.addresses import is_local
from ...storage.checkpoints.adapter_folder import find_adapter
from ...storage.checkpoints.folder import choose_weights, is_side_file, open_folder
from ...storage.copy_to_file import copy_to_file
from .load_check import NotCheckedError

_MORE_SMALL_FILES = (CONFIG_NAME, ADAPTER_CONFIG_NAME, INDEX_NAME)


@contextmanager
def local_copy(uri: str, options: Mapping[str, object] | None, *, weights: bool) -> Iterator[Path]:
    """Yield the directory of a model: the model itself, or a temporary copy of a remote one.

    Parameters
    ----------
    weights : copy weights too; otherwise only the small files

    Raises
    ------
    CheckpointError : there is no model
    NotCheckedError : the address is that of one file, or there is no room for the copy
    StoreError : the place cannot be read
    """
    folder = open_folder(uri, options)
    if folder.only_file is not None:
        raise NotCheckedError(f"{folder.display('')} is one file; transformers loads directories")
    if is_local(folder.uri):
        yield Path(folder.store.root_uri)
        return
    names = [name for name, info in folder.files.items() if is_side_file(info, name) or _is_small_file(name)]
    if weights:
        adapter = find_adapter(folder)
        names += [adapter.weights] if adapter is not None else choose_weights(folder)[0]
    with tempfile.TemporaryDirectory(prefix="eigenmerge-load-") as place:
        needed, free = sum(folder.files[name].size for name in names), shutil.disk_usage(place).free
        if needed > free:
            raise NotCheckedError(
                f"a copy of {folder.display('')} needs {needed} bytes, {place} has {free}; set TMPDIR to another disk"
            )
        for name in names:
            copy_to_file(folder.store, name, folder.files[name].size, Path(place) / name)
        yield Path(place)


def _is_small_file(name: str) -> bool:
    return name in _MORE_SMALL_FILES or name.endswith(".py")
