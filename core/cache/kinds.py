"""Table of the kinds of stored object: the names of each, its check, what is deleted with it, and in which order.

`core/formats/store_folders.py` has the folders, `core/planning/keys.py` the keys inside them. An object is ours if its
key is one that Eigenmerge makes (a hash, not any name in the folder) and its content proves it: see `is_ours`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..coordination.claims import is_claim, read_claim
from ..errors import CorruptObjectError, ObjectNotFoundError
from ..formats.store_folders import ALIGNMENTS, CLAIMS, MEASURES, PARTS, PROBES, RUNS, SPECTRA, SUMS, SWEEPS
from ..storage.store import PROBE_CONTENTS, Store
from .parts import PART_SUFFIX, RECORD_SUFFIX, TABLE_SUFFIX, read_record, verify_part, verify_record
from .run_folder import OBJECTS_NAME, RUN_NAME, TABLE_NAME
from .runs import read_run, read_run_objects

Check = Callable[[Store, str], object]

_PARALLEL_READS = 16
_HASH = "[0-9a-f]{64}"
_SUFFIXES = f"(?:{'|'.join(map(re.escape, (PART_SUFFIX, RECORD_SUFFIX, TABLE_SUFFIX)))})"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of stored object.

    name : in messages
    folder : what its keys begin with
    pattern : of the rest of its keys, a regular expression
    check : reads the object of a key and raises ObjectNotFoundError or CorruptObjectError; None where the content is
        advisory, so that damage does no harm
    seal : the same, but reads only as much as proves that Eigenmerge wrote the object
    mark : text in the first bytes of every object of the kind, by which a damaged one is recognized
    companions : suffixes of the objects that are deleted with a damaged one, because they are useless without it
    deletion : kinds with a smaller number are deleted first, so that a collection that is killed leaves no record of an
        object that is gone, and no object whose run is not recorded
    """

    name: str
    folder: str
    pattern: str
    check: Check | None
    seal: Check
    mark: bytes = b""
    companions: tuple[str, ...] = ()
    deletion: int = 1

    @property
    def group(self) -> str:
        """Name of the kinds that share a folder, for `eigenmerge cache du --by kind`."""
        return self.folder.removesuffix("/")

    def includes(self, key: str) -> bool:
        return key.startswith(self.folder) and re.fullmatch(self.pattern, key[len(self.folder) :]) is not None


# torch and pyarrow are imported by the checks that need them: `eigenmerge cache ls` has to be quick.
def _check_spectrum(store: Store, key: str) -> None:
    from .spectra.reader import verify_spectrum

    verify_spectrum(store, key)


def _seal_of_spectrum(store: Store, key: str) -> None:
    from .spectra.reader import verify_description

    verify_description(store, key)


def _check_table(store: Store, key: str) -> None:
    from .spectra.table_file import read_run_table

    for _ in read_run_table(store, key):
        pass


def _check_sweep_table(store: Store, key: str) -> None:
    from .sweep_tables import read_sweep_table

    read_sweep_table(store, key.removeprefix(SWEEPS).partition("/")[0])


def _check_best_recipe(store: Store, key: str) -> None:
    from .sweep_tables import check_best_recipe

    check_best_recipe(store, key)


def _check_sums(store: Store, key: str) -> None:
    from .sealed_tensors import read_seal, read_sealed

    read_sealed(store, read_seal(store, key))


def _seal_of_sums(store: Store, key: str) -> None:
    from .sealed_tensors import read_seal

    read_seal(store, key)


def _check_alignment(store: Store, key: str) -> None:
    from .alignments import read_alignment

    read_alignment(store, key)


def _check_run(store: Store, key: str) -> None:
    read_run(store, _run_key(key))


def _check_run_objects(store: Store, key: str) -> None:
    read_run_objects(store, _run_key(key))


def _run_key(key: str) -> str:
    return key.removeprefix(RUNS).partition("/")[0]


def _first_that_passes(*seals: Check) -> Check:
    """Return a seal that accepts what one of these accepts: objects with one owner prove each other."""

    def seal(store: Store, key: str) -> None:
        for number, one in enumerate(seals, 1):
            try:
                one(store, key)
            except (CorruptObjectError, ObjectNotFoundError):
                if number == len(seals):
                    raise
            else:
                return

    return seal


def _seal_of_record(store: Store, key: str) -> None:
    # A part is not marked itself: its header is that of a checkpoint. Its record proves what it is.
    read_record(store, re.sub(f"{_SUFFIXES}$", PART_SUFFIX, key))


def _seal_of_claim(store: Store, key: str) -> None:
    if not is_claim(read_claim(store, key)):
        raise CorruptObjectError(f"{store.display(key)}: is not a claim")


def _seal_of_probe(store: Store, key: str) -> None:
    if store.read_head(key, _LONGEST_PROBE_BYTES)[0] not in PROBE_CONTENTS:
        raise CorruptObjectError(f"{store.display(key)}: is not a probe")


_SEAL_OF_RUN = _first_that_passes(_check_run_objects, _check_run)
_MARKED_BYTES = 64 * 2**10
_LONGEST_PROBE_BYTES = 1 + max(map(len, PROBE_CONTENTS))

KINDS: tuple[Kind, ...] = (
    Kind("spectrum", SPECTRA, rf"[0-9a-f]{{2}}/{_HASH}\.arrow", _check_spectrum, _seal_of_spectrum, b"eigenmerge"),
    Kind(
        "sums",
        SUMS,
        rf"[0-9a-f]{{2}}/{_HASH}/[0-9]{{6,}}-{_HASH}\.safetensors",
        _check_sums,
        _seal_of_sums,
        b'"eigenmerge"',
    ),
    Kind(
        "probes of experts",
        MEASURES,
        rf"[0-9a-f]{{2}}/{_HASH}\.safetensors",
        _check_sums,
        _seal_of_sums,
        b'"eigenmerge"',
    ),
    Kind("alignment", ALIGNMENTS, rf"{_HASH}\.json", _check_alignment, _check_alignment, b'"spectra/', deletion=0),
    Kind(
        "part",
        PARTS,
        _HASH + re.escape(PART_SUFFIX),
        verify_part,
        _seal_of_record,
        companions=(RECORD_SUFFIX,),
    ),
    Kind(
        "record of a part",
        PARTS,
        _HASH + re.escape(RECORD_SUFFIX),
        verify_record,
        _seal_of_record,
        b'{"sha256": "',
        companions=(PART_SUFFIX,),
        deletion=0,
    ),
    Kind(
        "table of a part",
        PARTS,
        _HASH + re.escape(TABLE_SUFFIX),
        _check_table,
        _first_that_passes(_seal_of_record, _check_table),
        b"spectrum_key",
    ),
    Kind("run", RUNS, f"{_HASH}/{re.escape(RUN_NAME)}", _check_run, _SEAL_OF_RUN, b'"run_key"', deletion=3),
    Kind(
        "objects of a run",
        RUNS,
        f"{_HASH}/{re.escape(OBJECTS_NAME)}",
        _check_run_objects,
        _SEAL_OF_RUN,
        b'"run_key"',
        deletion=2,
    ),
    Kind(
        "table of a run",
        RUNS,
        f"{_HASH}/{re.escape(TABLE_NAME)}",
        _check_table,
        _first_that_passes(_SEAL_OF_RUN, _check_table),
        b"spectrum_key",
        deletion=2,
    ),
    Kind(
        "table of a sweep",
        SWEEPS,
        rf"{_HASH}/table\.arrow",
        _check_sweep_table,
        _check_sweep_table,
        b"eigenmerge sweep table",
    ),
    Kind(
        "best recipe of a sweep",
        SWEEPS,
        rf"{_HASH}/best\.yml",
        _check_best_recipe,
        _check_best_recipe,
        b"# eigenmerge sweep",
    ),
    Kind(
        "claim",
        CLAIMS,
        rf"(?:{_HASH}(?:{re.escape(PART_SUFFIX)}-spectra)?|run-{_HASH}-[0-9a-f]{{1,12}})\.json",
        None,
        _seal_of_claim,
        deletion=0,
    ),
    Kind("probe", PROBES, "[0-9a-f]{32}", None, _seal_of_probe),
)


def kind_of(key: str) -> Kind | None:
    """Return the kind of object that has keys of this form, None for any other key."""
    return next((kind for kind in KINDS if kind.includes(key)), None)


def is_ours(store: Store, key: str) -> bool:
    """Return whether Eigenmerge wrote the object: the key has the form of a kind, and the content is sealed by it.

    Cost: one small read; tables and records are read whole.
    """
    kind = kind_of(key)
    if kind is None:
        return False
    try:
        kind.seal(store, key)
    except (CorruptObjectError, ObjectNotFoundError):
        return False
    return True


def was_ours(store: Store, key: str) -> bool:
    """Return whether a damaged object was one of ours: it is empty, or begins as an object of some kind."""
    if kind_of(key) is None:
        return False
    try:
        head, size = store.read_head(key, _MARKED_BYTES)
    except ObjectNotFoundError:
        return False
    return size == 0 or any(kind.mark and kind.mark in head for kind in KINDS)


def divide_by_owner(
    store: Store, keys: Iterable[str], listed: Container[str], proof: Callable[[Store, str], bool] | None = None
) -> tuple[list[str], list[str]]:
    """Return the keys of objects that Eigenmerge wrote, and the others, both in the given order.

    Cost: that of `proof` for each key that is not in `listed`.

    Parameters
    ----------
    listed : keys that the records of runs list
    proof : `is_ours` by default
    """
    names = list(keys)
    proof = proof or is_ours

    def is_owned(key: str) -> bool:
        return kind_of(key) is not None and (key in listed or proof(store, key))

    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="owner") as pool:
        owned = list(pool.map(is_owned, names))
    pairs = list(zip(names, owned, strict=True))
    return [key for key, own in pairs if own], [key for key, own in pairs if not own]


def deleted_together(key: str) -> tuple[str, ...]:
    """Return the keys to delete when the object of `key` is damaged, in the order of deletion."""
    kind = kind_of(key)
    if kind is None or not kind.companions:
        return (key,)
    stem = re.sub(f"{_SUFFIXES}$", "", key)
    return tuple(sorted((key, *(stem + suffix for suffix in kind.companions)), key=deletion_order))


def deletion_order(key: str) -> tuple[int, str]:
    """Sort key that puts records before the objects that they describe, and the record of a run last."""
    kind = kind_of(key)
    return (kind.deletion if kind is not None else 1), key
