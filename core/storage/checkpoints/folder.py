"""The files of a checkpoint directory: which hold the weights, and which small files belong to the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

from ...errors import CheckpointError, CorruptObjectError, StoreError
from ...formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ...formats.file_names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    WEIGHTS_NAME,
)
from ...formats.object_names import find_key_problem
from ...formats.redaction import redact
from ..addresses import absolute_uri, is_local, is_web, protocol_of, split_address
from ..backends.near_paths import near_path
from ..backends.protocol import ObjectInfo
from ..store import Store, locate_object
from .hub import HUB_RETRY, pin_revision
from .linked_files import check_links_resolve

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
# One file of a process in a distributed checkpoint of PyTorch; the processes are not counted in the name.
_DISTRIBUTED_NAME = re.compile(r"shard-\d+-model-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
# PyTorch writes a distributed checkpoint to this folder of a model whose whole files it makes of it.
_DISTRIBUTED_FOLDER = "sharded"
_INDEXES = "*.safetensors.index.json"
# Small files that belong to a model besides its weights. `model_files.py` adds those that these files name.
_SIDE_FILES = (
    "*.json",
    "*.txt",
    "*.jinja",
    *("*.model", "*.model.v*", "*.tiktoken", "*.spm", "*.bpe", "*.codes", "*.vocab", "*.tokenizer"),
)
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
    """There is no model at this address; the reference may have another meaning."""


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """The files of one directory.

    files : name to facts, without subdirectories
    only_file : the weight file to use, or the index of the weight files, where the address names one
    """

    uri: str
    store: Store
    files: Mapping[str, ObjectInfo]
    only_file: str | None = None

    def display(self, name: str) -> str:
        """Return the address of a file, or of the directory for "", for messages."""
        return self.store.display(name)

    @property
    def index_name(self) -> str:
        """The name of the index: the one that the address names, or the usual one."""
        is_named = self.only_file is not None and fnmatchcase(self.only_file, _INDEXES)
        return self.only_file if is_named and self.only_file is not None else INDEX_NAME

    def read_json(self, name: str, limit: int) -> dict[str, object]:
        """Read a JSON object of at most `limit` bytes."""
        try:
            data = self.store.read(name, limit)
        except CorruptObjectError as error:
            raise CheckpointError(str(error)) from None
        return parse_json_object(data, self.display(name), limit, finite=False)

    def side_files(self) -> Mapping[str, str]:
        """Return name to URI of the small files that belong to the model."""
        return {name: self.store.uri(name) for name, info in sorted(self.files.items()) if is_side_file(info, name)}


def open_folder(uri: str, options: Mapping[str, object] | None) -> CheckpointFolder:
    """List the directory at `uri`, or the directory of the weight file or index at `uri`.

    Raises
    ------
    NoModelError : nothing at this address
    CheckpointError : a file that is neither; a directory with an unfinished merge; a link to a missing file
    """
    folder = _list_folder(uri, options)
    if MARKER_NAME in folder.files:
        raise CheckpointError(
            f"{folder.display('')} holds an unfinished merge ({MARKER_NAME}) and is no model; run that merge again to"
            " finish it"
        )
    if is_local(folder.uri):
        check_links_resolve(folder.uri, lambda name: _is_looked_for(folder, name))
    return folder


def _list_folder(uri: str, options: Mapping[str, object] | None) -> CheckpointFolder:
    retry = None
    if protocol_of(uri) == "hf":
        uri, retry = pin_revision(uri, options), HUB_RETRY
    elif is_web(uri):
        retry = HUB_RETRY
    last = split_address(uri)[1]
    if fnmatchcase(last, "*.safetensors") or fnmatchcase(last, _INDEXES) or is_pickle(last):
        store, only_file = locate_object(uri, options, retry=retry)
        try:
            files = {info.key: info for info in store.list(recursive=False)}
        except StoreError:  # the object may be readable in a bucket that may not be listed
            files = {only_file: store.info(only_file)}
        if is_web(uri) and only_file not in files:  # without an index page only files of usual names are found
            files[only_file] = store.info(only_file)
        if only_file in files:
            return CheckpointFolder(uri, store, files, only_file)
        if not any(store.list(only_file, recursive=False)):
            raise NoModelError(f"no such model: {redact(uri)} does not exist{_hint(uri)}")
    store = Store(uri, options, retry=retry)
    try:
        files = {info.key: info for info in store.list(recursive=False)}
    except StoreError as error:
        if is_local(uri) and isinstance(error.__cause__, NotADirectoryError):
            raise CheckpointError(f"{uri} is not a model; expected a directory or a .safetensors file") from None
        raise
    if not files and is_web(uri):
        raise NoModelError(
            f"no such model: {redact(uri)} has no index page with files of a model, and no {WEIGHTS_NAME},"
            f" {INDEX_NAME} or {CONFIG_NAME}; correct the address, or name the file of the weights"
        )
    if not files and is_local(uri) and not Path(absolute_uri(uri)).exists():
        raise NoModelError(f"no such model: {redact(uri)} does not exist{_hint(uri)}")
    if not files:
        raise NoModelError(f"no such model: {redact(uri)} has no files; expected a directory with safetensors files")
    return CheckpointFolder(uri, store, files)


def find_home(folder: CheckpointFolder, options: Mapping[str, object] | None) -> CheckpointFolder:
    """Return the folder with the config and the side files of a model: the one of its weights, or the one above.

    PyTorch writes a distributed checkpoint to MODEL/sharded; config and tokenizer are in MODEL then.
    """
    parent, name = split_address(folder.uri)
    if name != _DISTRIBUTED_FOLDER or CONFIG_NAME in folder.files or not parent:
        return folder
    store = Store(parent, options)
    try:
        files = {info.key: info for info in store.list(recursive=False)}
    except StoreError:
        return folder
    return CheckpointFolder(parent, store, files) if CONFIG_NAME in files else folder


def choose_weights(folder: CheckpointFolder) -> tuple[list[str], Mapping[str, str] | None]:
    """Return the names of a full model's weight files, sorted, and the index's map of tensor name to file, or None.

    Raises
    ------
    CheckpointError : no weight files, more than one set of them, missing ones, or pickles
    """
    if folder.only_file is not None:
        if fnmatchcase(folder.only_file, _INDEXES):
            weight_map = _read_index(folder, folder.only_file)
            return sorted(set(weight_map.values())), weight_map
        if folder.only_file.endswith(".safetensors"):
            _check_not_a_part(folder, folder.only_file)
            return [folder.only_file], None
        raise pickle_error(folder, folder.only_file)
    safetensors = sorted(name for name in folder.files if name.endswith(".safetensors"))
    if INDEX_NAME in folder.files:
        weight_map = _read_index(folder, INDEX_NAME)
        names = sorted(set(weight_map.values()))
        if WEIGHTS_NAME in safetensors and WEIGHTS_NAME not in names:
            # transformers prefers the single file, mergekit the index. A guess could merge the wrong weights.
            raise CheckpointError(
                f"{folder.display('')} has {WEIGHTS_NAME} and an index of other files; remove the stale one,"
                f" or name the file: {folder.display(WEIGHTS_NAME)}"
            )
        _check_one_set(folder, names, safetensors)
        return names, weight_map
    if WEIGHTS_NAME in safetensors:
        _check_one_set(folder, [WEIGHTS_NAME], safetensors)
        return [WEIGHTS_NAME], None
    full = [name for name in safetensors if name != ADAPTER_WEIGHTS_NAME]
    if safetensors and not full:
        raise CheckpointError(
            f"{folder.display('')} has {ADAPTER_WEIGHTS_NAME} and no {ADAPTER_CONFIG_NAME}, which states the scaling of"
            " the adapter; download it too"
        )
    if len(full) == 1 and not SHARD_NAME.fullmatch(full[0]):
        return full, None
    distributed = [name for name in full if _DISTRIBUTED_NAME.fullmatch(name)]
    if distributed and len(distributed) == len(full):
        _check_distributed(folder, full)
        return full, None
    if full:
        _check_shards(folder, full)
        return full, None
    if any(name == ".metadata" or name.endswith(".distcp") for name in folder.files):
        raise CheckpointError(
            f"{folder.display('')} is a distributed checkpoint with pickled metadata (.metadata and *.distcp), which"
            " can run code when it is loaded; save it with torch.distributed.checkpoint.HuggingFaceStorageWriter, or"
            " convert it where you trust it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER"
            " FILE.pt, then save its tensors with safetensors"
        )
    pickles = sorted(filter(is_pickle, folder.files))
    if pickles:
        raise pickle_error(folder, pickles[0])
    hint = ""
    if any(folder.store.list(_DISTRIBUTED_FOLDER, recursive=False)):
        hint = f"; for the checkpoint in it name {folder.display(_DISTRIBUTED_FOLDER)}"
    raise CheckpointError(
        f"no such model: {folder.display('')} has no safetensors file; expected {WEIGHTS_NAME} or {INDEX_NAME}{hint}"
    )


def _check_one_set(folder: CheckpointFolder, chosen: Sequence[str], safetensors: Sequence[str]) -> None:
    """Check that no other set of files has the name of the chosen ones: files of two merges in one directory.

    Sets with another name (consolidated-00001-of-00010, model.fp16) are variants and do not matter.
    """
    first: dict[str, str] = {}
    for name in chosen:
        first.setdefault(_set_of(name)[0], name)
    for name in safetensors:
        stem, count = _set_of(name)
        if stem in first and count != _set_of(first[stem])[1]:
            raise CheckpointError(
                f"{folder.display('')} has weight files of two models, {first[stem]} and {name}; remove the stale ones,"
                f" or name the file or the index to use: {folder.display(INDEX_NAME)}"
            )


def _set_of(name: str) -> tuple[str, str]:
    """Return the name and the number of files of the set that a weight file belongs to; "" if it is the only one."""
    match = SHARD_NAME.fullmatch(name)
    return (match["stem"], match["count"]) if match else (name.removesuffix(".safetensors"), "")


def _read_index(folder: CheckpointFolder, index: str) -> Mapping[str, str]:
    weight_map = folder.read_json(index, LONGEST_INDEX_BYTES).get("weight_map")
    where = folder.display(index)
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where}: expected a weight_map of tensor names to file names")
    missing: list[str] = []
    for name in sorted({str(value) for value in cast("dict[str, object]", weight_map).values()}):
        problem = find_key_problem(name)
        if problem is None and "/" in name:
            problem = "it is in another directory"
        if problem is not None:
            raise CheckpointError(
                f"{where}: file name {name[:200]!r} is refused: {problem}; expected the name of a file beside the index"
            )
        if not name.endswith(".safetensors"):
            raise pickle_error(folder, name)
        if name not in folder.files:
            missing.append(name)
    if missing:
        raise CheckpointError(
            f"{where} lists {len(missing)} missing files, the first is {missing[0]!r}; download them again"
        )
    return cast("Mapping[str, str]", weight_map)


def _check_shards(folder: CheckpointFolder, names: list[str]) -> None:
    """Check that files named model-00001-of-00003, without an index, are one complete set."""
    matches = [SHARD_NAME.fullmatch(name) for name in names]
    stems = {(match["stem"], match["count"]) for match in matches if match}
    if len(stems) != 1 or not all(matches):
        raise CheckpointError(
            f"{folder.display('')} has {len(names)} safetensors files and no {INDEX_NAME}: {', '.join(names[:5])};"
            " name the file to use"
        )
    count = int(next(iter(stems))[1])
    if len(names) != count:
        raise CheckpointError(f"{folder.display('')} has {len(names)} of {count} weight files; download the others")


def _check_distributed(folder: CheckpointFolder, names: list[str]) -> None:
    """Check that the files of a distributed checkpoint are one set, and that each of its files is there at least once.

    A process without parts for a file does not write it. Whether all parts are there is checked for each tensor.
    """
    matches = [match for name in names if (match := _DISTRIBUTED_NAME.fullmatch(name))]
    counts = sorted({match["count"] for match in matches})
    if len(counts) > 1:
        raise CheckpointError(
            f"{folder.display('')} has files of two distributed checkpoints, of {int(counts[0])} and of"
            f" {int(counts[1])} model files; remove the stale ones"
        )
    present = {int(match["number"]) for match in matches}
    if len(present) != int(counts[0]):
        raise CheckpointError(
            f"{folder.display('')} has {len(present)} of {int(counts[0])} model files of a distributed checkpoint; copy"
            " the others"
        )


def _check_not_a_part(folder: CheckpointFolder, name: str) -> None:
    """Check that a file that the address names is not one of several of a distributed checkpoint."""
    if not _DISTRIBUTED_NAME.fullmatch(name):
        return
    others = [other for other in folder.files if other != name and _DISTRIBUTED_NAME.fullmatch(other)]
    if others or not name.startswith("shard-00001-model-00001-of-00001"):
        raise CheckpointError(
            f"{folder.display(name)} has parts of the tensors of a distributed checkpoint; name the folder of all its"
            " files"
        )


def is_side_file(info: ObjectInfo, name: str) -> bool:
    """Return whether an object, by its name in its folder, is a small file that belongs to a model."""
    return info.size <= _LARGEST_SIDE_FILE_BYTES and _is_side_name(name)


def _is_looked_for(folder: CheckpointFolder, name: str) -> bool:
    """Return whether a model with a file of this name is read differently from one without it."""
    is_weights = name.endswith(".safetensors") and INDEX_NAME not in folder.files  # an index names its files
    return is_weights or name in (CONFIG_NAME, ADAPTER_CONFIG_NAME, INDEX_NAME) or _is_side_name(name)


def _is_side_name(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _SIDE_FILES) and not any(
        fnmatchcase(name, pattern) for pattern in _NOT_SIDE_FILES
    )


def is_pickle(name: str) -> bool:
    """Return whether a file is a pickle by its name."""
    return any(fnmatchcase(name, pattern) for pattern in _PICKLES)


def pickle_error(folder: CheckpointFolder, name: str) -> CheckpointError:
    """Return the error about a pickle, with a command that converts it."""
    # Quotes or spaces in the path would break the shell command; then it shows a placeholder.
    path = folder.display(name)
    shown = path if re.fullmatch(r"[\w./-]+", path) else "FILE.bin"
    output = shown.rpartition("/")[0] + "/" if "/" in shown else ""
    output += ADAPTER_WEIGHTS_NAME if name.startswith("adapter_model") else WEIGHTS_NAME
    return CheckpointError(
        f"{path} is a pickle, which can run code when it is loaded; expected safetensors. Convert it safely:"
        f' python -c "import torch; from safetensors.torch import save_file;'
        f" d = torch.load('{shown}', map_location='cpu', weights_only=True); d = d.get('state_dict', d);"
        f" save_file({{k: v.clone().contiguous() for k, v in d.items()}}, '{output}', metadata={{'format': 'pt'}})\""
    )


def _hint(uri: str) -> str:
    """Return a near path of this machine, or what to do."""
    return (redact(near_path(absolute_uri(uri))) if is_local(uri) else "") or "; correct the path"
