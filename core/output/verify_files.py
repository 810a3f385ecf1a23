"""Check the files of a merged checkpoint against its manifest: sizes, checksums, tensors, index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import cast

from ..errors import CheckpointError, CorruptObjectError, ObjectNotFoundError, StoreError
from ..formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ..formats.file_names import INDEX_NAME, MARKER_NAME
from ..formats.safetensors_header import SafetensorsHeader, TensorEntry
from ..storage.object_hash import hash_ranges
from ..storage.object_header import read_header
from ..storage.object_ranges import ObjectRange
from ..storage.store import Store
from .read_manifest import Manifest, ManifestFile, ManifestTensor

_PARALLEL_FILES = 4
_WEIGHTS = re.compile(r".*\.safetensors|pytorch_model.*\.bin")


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The check of one file.

    how : what was compared
    problems : one line each; empty where the file is right
    """

    name: str
    how: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorPlaces:
    """The file and the bytes of each stored tensor, of all files whose header could be read."""

    places: Mapping[str, tuple[str, TensorEntry]]

    def ranges(self, names: Iterable[str]) -> list[ObjectRange]:
        """Return the bytes of these tensors as (file, start, stop)."""
        return [(file, entry.start, entry.stop) for file, entry in (self.places[name] for name in names)]


def verify_files(store: Store, manifest: Manifest) -> tuple[list[FileCheck], TensorPlaces]:
    """Check every file that the manifest lists, and then the index.

    The manifest has the sha256 of each file, except where a store copied the file on its own side, and those of its
    tensors. Both are compared: the hash of a file does not show damage that was there before the file was joined.

    Cost: two reads of the checkpoint.
    """
    with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="verify") as pool:
        sizes = {info.key: info.size for info in store.list("")}

        def header(file: ManifestFile) -> SafetensorsHeader | str:
            return _header(store, file, sizes.get(file.name))

        headers = dict(zip(manifest.files, pool.map(header, manifest.files), strict=True))
        places = _layout(headers)
        rows = _rows_by_file(manifest, places)

        def check_weights(file: ManifestFile) -> FileCheck:
            header = headers[file]
            if isinstance(header, str):
                return FileCheck(file.name, "header", (header,))
            return _check_weights(store, file, header, rows.get(file.name, []), places)

        checks = [*pool.map(check_weights, manifest.files)]
        side_names, side_hashes = manifest.side_files.keys(), manifest.side_files.values()
        checks += pool.map(partial(_check_side, store), side_names, side_hashes)
    readable = not any(isinstance(header, str) for header in headers.values())
    checks.append(_check_whole(store, manifest, places, sizes.keys(), readable))
    return checks, places


def foreign_weights(present: Iterable[str], own: Set[str]) -> list[str]:
    """Return the weight files at the top of a checkpoint that are not among its own, sorted."""
    return sorted(name for name in present if "/" not in name and _WEIGHTS.fullmatch(name) and name not in own)


def read_stored(store: Store, places: TensorPlaces, row: ManifestTensor) -> bytes:
    """Return the stored bytes of one tensor of the manifest."""
    return b"".join(store.read_range(*place) for place in places.ranges(row.stored_names))


def _header(store: Store, file: ManifestFile, size: int | None) -> SafetensorsHeader | str:
    """Return the header, or what is wrong with it. `size` is None where the file is missing."""
    if size is None:
        return "is missing"
    if size != file.num_bytes:
        return f"has {size} bytes, expected {file.num_bytes}"
    try:
        return read_header(store, file.name, size)
    except ObjectNotFoundError:
        return "is missing"
    except (CheckpointError, CorruptObjectError) as error:
        return str(error)


def _layout(headers: Mapping[ManifestFile, SafetensorsHeader | str]) -> TensorPlaces:
    places: dict[str, tuple[str, TensorEntry]] = {}
    for file, header in headers.items():
        if not isinstance(header, str):
            places.update((name, (file.name, entry)) for name, entry in header.tensors.items())
    return TensorPlaces(places)


def _rows_by_file(manifest: Manifest, places: TensorPlaces) -> dict[str, list[ManifestTensor]]:
    found: dict[str, list[ManifestTensor]] = {}
    for row in manifest.tensors:
        in_files = [places.places[name] for name in row.stored_names if name in places.places]
        if len(in_files) == len(row.stored_names) and in_files:
            found.setdefault(in_files[0][0], []).append(row)
    return found


def _check_weights(
    store: Store, file: ManifestFile, header: SafetensorsHeader, rows: Sequence[ManifestTensor], places: TensorPlaces
) -> FileCheck:
    known = {name for row in rows for name in row.stored_names}
    problems = [f"tensor {name[:200]!r} is not in the manifest" for name in header.tensors if name not in known]
    for row in rows:
        entry = places.places[row.stored_names[0]][1]
        as_planned = row.stored_as is not None or list(entry.shape) == row.shape
        if entry.dtype != row.dtype or not as_planned:
            found = f"{entry.dtype} {list(entry.shape)}"
            problems.append(f"tensor {row.name[:200]!r} is {found}, expected {row.dtype} {row.shape}")
    # Also where the file has its sha256: bytes that were damaged before the file was joined are part of that.
    how = f"sha256 of {len(rows)} tensors"
    if file.sha256 is not None:
        how = f"sha256, and {how}"
        if _hash(store, [(file.name, 0, file.num_bytes)]) != file.sha256:
            problems.append("its sha256 differs from the manifest")
    damaged = [row for row in rows if _hash(store, places.ranges(row.stored_names)) != row.sha256]
    problems += [f"tensor {row.name[:200]!r} fails its sha256" for row in damaged]
    return FileCheck(file.name, how, tuple(problems))


def _check_side(store: Store, name: str, expected: str) -> FileCheck:
    try:
        found = _hash(store, [(name, 0, store.info(name).size)])
    except ObjectNotFoundError:
        return FileCheck(name, "sha256", ("is missing",))
    return FileCheck(name, "sha256", () if found == expected else ("its sha256 differs from the manifest",))


def _check_whole(
    store: Store, manifest: Manifest, places: TensorPlaces, present: Set[str], readable: bool
) -> FileCheck:
    """Check that the merge has finished, and that a loader will read these files and no others."""
    problems: list[str] = []
    if MARKER_NAME in present:
        problems.append("a merge into this directory has not finished; run it again")
    if readable:  # otherwise the unreadable header is reported already
        missing = [row.name for row in manifest.tensors if any(n not in places.places for n in row.stored_names)]
        problems += [f"tensor {name[:200]!r} is in none of the files" for name in missing]
    foreign = foreign_weights(present, {file.name for file in manifest.files})
    problems += [f"{name} is not part of this merge; loaders may read it" for name in foreign]
    if len(manifest.files) > 1:
        problems += _check_index(store, manifest, places, present, readable)
    elif INDEX_NAME in present:
        problems.append(f"{INDEX_NAME} is not part of this merge; loaders prefer it to the file")
    return FileCheck("the whole", "tensors, index, nothing foreign", tuple(problems))


def _check_index(
    store: Store, manifest: Manifest, places: TensorPlaces, present: Set[str], readable: bool
) -> Iterator[str]:
    if INDEX_NAME not in present:
        yield f"{INDEX_NAME} is missing: the merge has not finished"
        return
    try:
        content = parse_json_object(store.read(INDEX_NAME, LONGEST_INDEX_BYTES), INDEX_NAME, LONGEST_INDEX_BYTES)
    except (CheckpointError, StoreError) as error:
        yield str(error)
        return
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict):
        yield f"{INDEX_NAME}: has no weight_map"
        return
    if not readable:
        return
    in_index = cast("dict[str, object]", weight_map)
    actual = {name: file for name, (file, _) in places.places.items()}
    wrong = sorted(name for name in {*in_index, *actual} if in_index.get(name) != actual.get(name))
    if wrong:
        yield f"{INDEX_NAME}: names the wrong file for {len(wrong)} tensors, the first is {wrong[0][:200]!r}"


def _hash(store: Store, ranges: Sequence[ObjectRange]) -> str | None:
    """Return the sha256 of the concatenated ranges; None where a file is missing or too short."""
    try:
        return hash_ranges(store, ranges)
    except (ObjectNotFoundError, CorruptObjectError):
        return None
