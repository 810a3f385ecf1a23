"""Table of the kinds of stored object: the names of each, its check, what is deleted with it, and in which order.

`core/formats/store_folders.py` has the folders, `core/planning/keys.py` the keys inside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..formats.store_folders import ALIGNMENTS, CLAIMS, PARTS, PROBES, RUNS, SPECTRA, SUMS
from ..storage.store import Store
from .parts import PART_SUFFIX, RECORD_SUFFIX, TABLE_SUFFIX, verify_part, verify_record
from .run_folder import OBJECTS_NAME, RUN_NAME, TABLE_NAME
from .runs import read_run, read_run_objects

Check = Callable[[Store, str], object]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of stored object.

    name : in messages
    folder, suffix : what its keys begin and end with
    check : reads the object of a key and raises ObjectNotFoundError or CorruptObjectError; None where the content is
        advisory, so that damage does no harm
    companions : suffixes of the objects that are deleted with a damaged one, because they are useless without it
    deletion : kinds with a smaller number are deleted first, so that a collection that is killed leaves no record of an
        object that is gone, and no object whose run is not recorded
    """

    name: str
    folder: str
    suffix: str
    check: Check | None
    companions: tuple[str, ...] = ()
    deletion: int = 1

    @property
    def group(self) -> str:
        """Name of the kinds that share a folder, for `eigenmerge cache du --by kind`."""
        return self.folder.removesuffix("/")

    def includes(self, key: str) -> bool:
        return key.startswith(self.folder) and key.endswith(self.suffix)


# torch and pyarrow are imported by the checks that need them: `eigenmerge cache ls` has to be quick.
def _check_spectrum(store: Store, key: str) -> None:
    from .spectra.reader import verify_spectrum

    verify_spectrum(store, key)


def _check_table(store: Store, key: str) -> None:
    from .spectra.table_file import read_run_table

    read_run_table(store, key)


def _check_sums(store: Store, key: str) -> None:
    from .sealed_tensors import read_seal, read_sealed

    read_sealed(store, read_seal(store, key))


def _check_alignment(store: Store, key: str) -> None:
    from .alignments import read_alignment

    read_alignment(store, key)


def _check_run(store: Store, key: str) -> None:
    read_run(store, _run_key(key))


def _check_run_objects(store: Store, key: str) -> None:
    read_run_objects(store, _run_key(key))


def _run_key(key: str) -> str:
    return key.removeprefix(RUNS).partition("/")[0]


KINDS: tuple[Kind, ...] = (
    Kind("spectrum", SPECTRA, ".arrow", _check_spectrum),
    Kind("sums", SUMS, ".safetensors", _check_sums),
    Kind("alignment", ALIGNMENTS, ".json", _check_alignment, deletion=0),
    Kind("part", PARTS, PART_SUFFIX, verify_part, companions=(RECORD_SUFFIX,)),
    Kind("record of a part", PARTS, RECORD_SUFFIX, verify_record, companions=(PART_SUFFIX,), deletion=0),
    Kind("table of a part", PARTS, TABLE_SUFFIX, _check_table),
    Kind("run", RUNS, f"/{RUN_NAME}", _check_run, deletion=3),
    Kind("objects of a run", RUNS, f"/{OBJECTS_NAME}", _check_run_objects, deletion=2),
    Kind("table of a run", RUNS, f"/{TABLE_NAME}", _check_table, deletion=2),
    Kind("claim", CLAIMS, "", None, deletion=0),
    Kind("probe", PROBES, "", None),
)


def kind_of(key: str) -> Kind | None:
    """Return the kind of the object of that key, None for an object that Eigenmerge did not write."""
    return next((kind for kind in KINDS if kind.includes(key)), None)


def deleted_together(key: str) -> tuple[str, ...]:
    """Return the keys to delete when the object of `key` is damaged, in the order of deletion."""
    kind = kind_of(key)
    if kind is None or not kind.companions:
        return (key,)
    stem = key.removesuffix(kind.suffix)
    return tuple(sorted((key, *(stem + suffix for suffix in kind.companions)), key=deletion_order))


def deletion_order(key: str) -> tuple[int, str]:
    """Sort key that puts records before the objects that they describe, and the record of a run last."""
    kind = kind_of(key)
    return (kind.deletion if kind is not None else 1), key
