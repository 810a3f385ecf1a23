"""Check everything in a store against its checksums."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..cache.alignments import read_alignment
from ..cache.layout import ALIGNMENTS, CLAIMS, PARTS, PROBES, RUNS, SPECTRA, SUMS
from ..cache.parts import read_record, record_key
from ..cache.runs import OBJECTS_NAME, RUN_NAME, read_run, read_run_objects
from ..cache.sealed_tensors import read_seal, read_sealed
from ..cache.spectra.reader import verify_spectrum
from ..cache.spectra.table_file import read_run_table
from ..errors import CorruptObjectError, ObjectNotFoundError
from ..storage.object_hash import hash_object
from ..storage.store import Store

_PARALLEL_OBJECTS = 4  # each may be as large as a layer, and is held while it is checked


@dataclass(frozen=True, slots=True)
class Damage:
    """One object that is not what it should be. `keys`: what has to go for it to be made again."""

    key: str
    reason: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """What a check found.

    uncommitted : parts without a record, which a killed run leaves and the next one overwrites
    foreign : objects that are none of ours
    """

    num_checked: int
    num_bytes: int
    damaged: tuple[Damage, ...]
    uncommitted: tuple[str, ...]
    foreign: tuple[str, ...]


def verify_store(store: Store, *, delete: bool = False) -> StoreCheck:
    """Read every object and check it.

    Cost: one read of everything.

    Parameters
    ----------
    delete : remove what is damaged; the next run that needs it makes it again
    """
    sizes = {info.key: info.size for info in store.list("") if not info.key.startswith((CLAIMS, PROBES))}
    keys = [key for key in sizes if _check_of(key) is not None]
    uncommitted = [key for key in keys if _is_part(key) and record_key(key) not in sizes]

    def check(key: str) -> Damage | None:
        verify = _check_of(key)
        assert verify is not None
        try:
            verify(store, key)
        except ObjectNotFoundError as error:
            return (
                Damage(key, str(error), _goes_with(key)) if store.exists(key) else None
            )  # removed since it was listed
        except CorruptObjectError as error:
            return Damage(key, str(error), _goes_with(key))
        return None

    checked = [key for key in keys if key not in set(uncommitted)]
    with ThreadPoolExecutor(_PARALLEL_OBJECTS, thread_name_prefix="verify") as pool:
        damaged = [damage for damage in pool.map(check, checked) if damage is not None]
    if delete:
        store.delete(dict.fromkeys(key for damage in damaged for key in damage.keys))
    foreign = [key for key in sizes if _check_of(key) is None]
    return StoreCheck(
        len(checked), sum(sizes[key] for key in checked), tuple(damaged), tuple(uncommitted), tuple(foreign)
    )


Check = Callable[[Store, str], object]


def _check_of(key: str) -> Check | None:
    """What checks an object of that name; None for one that is not ours."""
    for prefix, suffix, check in _CHECKS:
        if key.startswith(prefix) and key.endswith(suffix):
            return check
    return None


def _is_part(key: str) -> bool:
    return key.startswith(PARTS) and key.endswith(".safetensors")


def _goes_with(key: str) -> tuple[str, ...]:
    """A part without its record is not looked at, a record without its part neither: both go."""
    if key.startswith(PARTS) and not key.endswith(".arrow"):
        stem = key.rpartition(".")[0]
        return f"{stem}.json", f"{stem}.safetensors"
    return (key,)


def _verify_part(store: Store, key: str) -> None:
    try:
        report = read_record(store, key)
    except CorruptObjectError:
        return  # its record is checked, and reported, by itself
    size = store.info(key).size
    if size != report.num_bytes:
        raise CorruptObjectError(f"{store.display(key)} has {size} bytes, its record says {report.num_bytes}")
    if hash_object(store, key, size) != report.sha256:
        raise CorruptObjectError(f"{store.display(key)} fails its checksum")


def _verify_record(store: Store, key: str) -> None:
    part = key.removesuffix(".json") + ".safetensors"
    read_record(store, part)
    if not store.exists(part):
        raise CorruptObjectError(f"{store.display(key)}: its part is gone")


_CHECKS: tuple[tuple[str, str, Check], ...] = (
    (SPECTRA, ".arrow", verify_spectrum),
    (SUMS, ".safetensors", lambda store, key: read_sealed(store, read_seal(store, key))),
    (PARTS, ".safetensors", _verify_part),
    (PARTS, ".json", _verify_record),
    (PARTS, ".arrow", read_run_table),
    (ALIGNMENTS, ".json", read_alignment),
    (RUNS, f"/{RUN_NAME}", lambda store, key: read_run(store, _run_of(key))),
    (RUNS, f"/{OBJECTS_NAME}", lambda store, key: read_run_objects(store, _run_of(key))),
    (RUNS, ".arrow", read_run_table),
)


def _run_of(key: str) -> str:
    return key.removeprefix(RUNS).partition("/")[0]
