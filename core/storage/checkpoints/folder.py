"""Which files of a directory hold the weights, and which ones go with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...errors import CheckpointError, StoreError
from ...formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ...formats.file_names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
)
from ...formats.object_names import find_key_problem
from ...formats.redaction import redact
from ..addresses import is_local, protocol_of
from ..backends.protocol import ObjectInfo
from ..store import Store, locate_object
from .hub import HUB_RETRY, pin_revision

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
# Small files that belong to a model besides its weights. Python files are left out: a merge never carries code.
_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.bpe")
_NOT_SIDE_FILES = (
    CONFIG_NAME,
    "*.index.json",
    ADAPTER_CONFIG_NAME,
    MANIFEST_NAME,
    "trainer_state.json",
    "all_results.json",
    "*_results.json",
    "requirements*.txt",
    "LICENSE*",
    "NOTICE*",
    "README*",
    "USE_POLICY*",
)
_LARGEST_SIDE_FILE_BYTES = 256 * 2**20


class NoModelError(CheckpointError):
    """Nothing there: another reading of the reference may still be right."""


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """The files of one directory, and which of them hold the weights."""

    uri: str
    store: Store
    files: Mapping[str, ObjectInfo]
    only_file: str | None = None

    def path(self, name: str) -> str:
        return self.store.display(name)

    def json_object(self, name: str, limit: int) -> dict[str, object]:
        size = self.files[name].size
        if size > limit:
            raise CheckpointError(f"{self.path(name)}: {size} bytes of JSON, expected at most {limit}")
        return parse_json_object(self.store.read(name), self.path(name), limit, finite=False)

    def side_files(self) -> Mapping[str, str]:
        """Name to URI of the small files that go with the weights."""
        return {name: self.store.uri(name) for name, info in sorted(self.files.items()) if _is_side_file(info)}


def open_folder(uri: str, options: Mapping[str, object] | None) -> CheckpointFolder:
    retry = None
    if protocol_of(uri) == "hf":
        uri, retry = pin_revision(uri, options), HUB_RETRY
    last = uri.rpartition("/")[2]
    if fnmatchcase(last, "*.safetensors") or any(fnmatchcase(last, pattern) for pattern in _PICKLES):
        store, only_file = locate_object(uri, options, retry=retry)
        try:
            files = {info.key: info for info in store.list(recursive=False)}
        except StoreError:  # one readable object in a bucket that may not be listed
            files = {only_file: store.info(only_file)}
        if only_file in files:
            return CheckpointFolder(uri, store, files, only_file)
        if not any(store.list(only_file, recursive=False)):
            raise NoModelError(f"no such model: {redact(uri)} does not exist; correct the path")
    store = Store(uri, options, retry=retry)
    try:
        files = {info.key: info for info in store.list(recursive=False)}
    except StoreError as error:
        if is_local(uri) and isinstance(error.__cause__, NotADirectoryError):
            raise CheckpointError(f"{uri} is not a model: expected a directory or a .safetensors file") from None
        raise
    if not files:
        raise NoModelError(f"no such model: nothing at {redact(uri)}; expected a directory with safetensors files")
    return CheckpointFolder(uri, store, files)


def choose_weights(folder: CheckpointFolder) -> tuple[list[str], Mapping[str, str] | None]:
    """The files with weights, sorted, and the index's map of tensor to file, if there is an index."""
    if folder.only_file is not None:
        if folder.only_file.endswith(".safetensors"):
            return [folder.only_file], None
        raise _refused_pickle(folder, folder.only_file)
    safetensors = sorted(name for name in folder.files if name.endswith(".safetensors"))
    if INDEX_NAME in folder.files:
        weight_map = _read_index(folder)
        names = sorted(set(weight_map.values()))
        if WEIGHTS_NAME in safetensors and WEIGHTS_NAME not in names:
            # transformers prefers the single file and mergekit the index: guessing would merge the wrong weights.
            raise CheckpointError(
                f"{folder.path('')} holds {WEIGHTS_NAME} and an index of other files; remove the stale one,"
                f" or name the file: {folder.path(WEIGHTS_NAME)}"
            )
        return names, weight_map
    if WEIGHTS_NAME in safetensors:
        return [WEIGHTS_NAME], None
    full = [name for name in safetensors if name != ADAPTER_WEIGHTS_NAME]
    if ADAPTER_CONFIG_NAME in folder.files and not full:
        if ADAPTER_WEIGHTS_NAME in safetensors:
            return [ADAPTER_WEIGHTS_NAME], None
        if "adapter_model.bin" in folder.files:
            raise _refused_pickle(folder, "adapter_model.bin")
    if len(full) == 1 and not _SHARD_NAME.fullmatch(full[0]):
        return full, None
    if full:
        return _complete_shards(folder, full), None
    pickles = sorted(name for name in folder.files if any(fnmatchcase(name, pattern) for pattern in _PICKLES))
    if pickles:
        raise _refused_pickle(folder, pickles[0])
    raise CheckpointError(
        f"no such model: {folder.path('')} holds no safetensors file; expected {WEIGHTS_NAME} or {INDEX_NAME}"
    )


def _read_index(folder: CheckpointFolder) -> Mapping[str, str]:
    index = folder.json_object(INDEX_NAME, LONGEST_INDEX_BYTES)
    weight_map = index.get("weight_map")
    where = folder.path(INDEX_NAME)
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where}: expected a weight_map of tensor names to file names")
    missing: list[str] = []
    for name in sorted({str(value) for value in weight_map.values()}):
        problem = find_key_problem(name)
        if problem is None and "/" in name:
            problem = "it lies in another folder"
        if problem is not None:
            raise CheckpointError(f"{where}: file name {name[:200]!r} is refused: {problem}")
        if not name.endswith(".safetensors"):
            raise _refused_pickle(folder, name)
        if name not in folder.files:
            missing.append(name)
    if missing:
        raise CheckpointError(
            f"{where} names {len(missing)} files that are not there, the first {missing[0]!r}; download them again"
        )
    return weight_map


def _complete_shards(folder: CheckpointFolder, names: list[str]) -> list[str]:
    """Files model-00001-of-00003 ... without an index: accepted when the set is complete and the only one."""
    matches = [_SHARD_NAME.fullmatch(name) for name in names]
    stems = {(match["stem"], match["count"]) for match in matches if match}
    if len(stems) != 1 or not all(matches):
        raise CheckpointError(
            f"{folder.path('')} holds {len(names)} safetensors files and no {INDEX_NAME}: {', '.join(names[:5])};"
            " name the file that is meant"
        )
    count = int(next(iter(stems))[1])
    if len(names) != count:
        raise CheckpointError(f"{folder.path('')} holds {len(names)} of {count} shards; download the others")
    return names


def _is_side_file(info: ObjectInfo) -> bool:
    return (
        info.size <= _LARGEST_SIDE_FILE_BYTES
        and any(fnmatchcase(info.key, pattern) for pattern in _SIDE_FILES)
        and not any(fnmatchcase(info.key, pattern) for pattern in _NOT_SIDE_FILES)
    )


def _refused_pickle(folder: CheckpointFolder, name: str) -> CheckpointError:
    # A path with quotes or spaces would make the line wrong in a shell; the name of the file is enough then.
    path = folder.path(name)
    shown = path if re.fullmatch(r"[\w./-]+", path) else "FILE.bin"
    output = shown.rpartition("/")[0] + "/" if "/" in shown else ""
    output += ADAPTER_WEIGHTS_NAME if name.startswith("adapter_model") else WEIGHTS_NAME
    return CheckpointError(
        f"{path} is a pickle, which can run code when it is loaded; only safetensors is read. Convert it safely:"
        f' python -c "import torch; from safetensors.torch import save_file;'
        f" d = torch.load('{shown}', map_location='cpu', weights_only=True); d = d.get('state_dict', d);"
        f" save_file({{k: v.clone().contiguous() for k, v in d.items()}}, '{output}', metadata={{'format': 'pt'}})\""
    )
