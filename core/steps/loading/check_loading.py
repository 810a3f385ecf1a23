"""Load a checkpoint as its users do, as far as the installed packages allow, and report each check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import EigenmergeError
from ...formats.bounded_json import LONGEST_CONFIG_BYTES, parse_json_object
from ...formats.file_names import ADAPTER_CONFIG_NAME
from ...storage.addresses import absolute_uri
from .keys import find_adapter_key_problems, find_key_problems
from .load_check import LoadCheck, LoadOptions, NotCheckedError, failed, passed
from .local_copy import local_copy
from .model_class import ModelClass, find_class, quiet_transformers, require_transformers
from .sources import ModelSource, find_source
from .stored_tensors import StoredTensors, find_nonfinite, read_stored_tensors
from .tokenizer import check_tokenizer
from .use_model import check_generation, compare_perplexity, load_model, measure_perplexity

_SMALL_BYTES = 3 * 10**9  # of the merged model and its sources together: some seconds each on two cores

Options = Mapping[str, object] | None


def check_loading(
    uri: str, options: Options, load: LoadOptions, *, base: str | None = None, experts: Sequence[str] = ()
) -> tuple[LoadCheck, ...]:
    """Check values, keys, tokenizer and chat template; generate and measure perplexity where asked for.

    Cost: one read of the checkpoint; without `generate` and `perplexity` no model is built in memory. Of a remote
    checkpoint the small files are copied to a temporary directory, and the weights too where a model is built.

    Parameters
    ----------
    uri : directory or address of the checkpoint
    options : for fsspec
    base, experts : references of the models that were merged, where they are known

    Raises
    ------
    CheckpointError : there is no checkpoint, or its headers are damaged
    StoreError : it cannot be read
    """
    tensors = read_stored_tensors(uri, options)
    values = _check_values(tensors)
    wanted = [name for name, ask in (("generation", load.generate > 0), ("perplexity", bool(load.perplexity))) if ask]
    try:
        require_transformers(*(["peft"] if tensors.is_adapter else []))
    except NotCheckedError as error:
        names = ", ".join(["keys", "tokenizer", "chat template", *wanted])
        return values, LoadCheck(names, "not checked", str(error), requested=bool(wanted))
    loading = _Loading(absolute_uri(uri), options, load, tensors, base, experts)
    checks = [values, *loading.check_files()]
    if any(check.outcome == "failed" for check in checks):
        reason = "a check before it has failed"
        return (*checks, *(LoadCheck(name, "not checked", reason, requested=True) for name in wanted))
    return (*checks, *loading.check_use())


class _Loading:
    """The checks of one checkpoint that need transformers."""

    def __init__(
        self,
        uri: str,
        options: Options,
        load: LoadOptions,
        tensors: StoredTensors,
        base: str | None,
        experts: Sequence[str],
    ) -> None:
        self._uri, self._options, self._load, self._tensors = uri, options, load, tensors
        self._base, self._experts = base, experts
        self._class: ModelClass | None = None
        self._tokenizer: Any = None

    def check_files(self) -> list[LoadCheck]:
        """Check keys, tokenizer and chat template, from headers and small files."""
        checks: list[LoadCheck] = []
        with local_copy(self._uri, self._options, weights=False) as folder:
            if self._tensors.is_adapter and self._base is None:
                self._base = _base_of_adapter(folder)
            try:
                self._class = self._find_class(folder)
                checks.append(self._check_keys(folder, self._class))
            except (NotCheckedError, EigenmergeError) as error:
                checks.append(LoadCheck("keys", "not checked", str(error)))
            rows = self._class.num_tokens if self._class is not None and not self._tensors.is_adapter else None
            with quiet_transformers():
                found, self._tokenizer = check_tokenizer(folder, rows, run_model_code=self._load.run_model_code)
        return checks + found

    def check_use(self) -> list[LoadCheck]:
        """Generate and measure, where that was asked for or takes little time."""
        checks: list[LoadCheck] = []
        if self._load.generate:
            checks.append(_attempt("generation", True, self._generate))
        asked = bool(self._load.perplexity)
        if asked or (self._load.perplexity is None and self._is_quick()):
            checks.append(_attempt("perplexity", asked, self._measure))
        return checks

    def _find_class(self, folder: Path) -> ModelClass:
        """Return the class of the checkpoint, or of the base of an adapter."""
        code = self._load.run_model_code
        if not self._tensors.is_adapter:
            return find_class(folder, run_model_code=code)
        with local_copy(self._own_source().model, self._options, weights=False) as base:
            return find_class(base, run_model_code=code)

    def _check_keys(self, folder: Path, found: ModelClass) -> LoadCheck:
        entries = {name: entry for name, (_, entry) in self._tensors.places.items()}
        if self._tensors.is_adapter:
            problems = find_adapter_key_problems(found, folder, entries)
            return failed("keys", problems) if problems else passed("keys", f"PEFT loads all of them into {found.name}")
        problems = find_key_problems(found, entries)
        inherited = self._problems_of_base(found) if problems else set[str]()
        own = [problem for problem in problems if problem not in inherited]
        if own:
            return failed("keys", own)
        if problems:
            return passed("keys", f"{found.name} loads them as those of the base, where also {problems[0]}")
        return passed("keys", f"{found.name} loads all {len(entries)}")

    def _problems_of_base(self, found: ModelClass) -> set[str]:
        """Return the problems that the base has too: a head that its class does not use, a pooler that it lacks."""
        try:
            source = self._base_source()
            if source is None or source.adapter is not None:
                return set()
            places = read_stored_tensors(source.model, self._options).places
            return set(find_key_problems(found, {name: entry for name, (_, entry) in places.items()}))
        except (EigenmergeError, NotCheckedError):
            return set()

    def _is_quick(self) -> bool:
        """Whether perplexity of the model and all its sources takes little time, and nothing has to be downloaded."""
        if self._class is None or self._tokenizer is None or not self._class.predicts_next_token:
            return False
        try:
            sources = self._sources()
        except (EigenmergeError, NotCheckedError):
            return False
        places = [self._own_source(), *sources.values()]
        return len(places) * self._tensors.num_bytes <= _SMALL_BYTES and all(place.is_here for place in places)

    def _generate(self) -> LoadCheck:
        code = self._load.run_model_code
        with load_model(self._own_source(), self._options, device=self._load.device, run_model_code=code) as loaded:
            return check_generation(loaded, self._load.generate)

    def _measure(self) -> LoadCheck:
        merged = self._perplexity(self._own_source())
        return compare_perplexity(
            merged, {label: self._perplexity(source) for label, source in self._sources().items()}
        )

    def _perplexity(self, source: ModelSource) -> float:
        code = self._load.run_model_code
        try:
            with load_model(source, self._options, device=self._load.device, run_model_code=code) as loaded:
                return measure_perplexity(loaded)
        except NotCheckedError as error:
            raise NotCheckedError(f"{source.adapter or source.model}: {error}") from None

    def _own_source(self) -> ModelSource:
        if not self._tensors.is_adapter:
            return ModelSource(self._uri)
        base = self._base_source()
        if base is None:
            raise NotCheckedError("the base of the adapter is not known")
        return ModelSource(base.model, self._uri)

    def _base_source(self) -> ModelSource | None:
        return None if self._base is None else find_source(self._base, self._options)

    def _sources(self) -> dict[str, ModelSource]:
        base = self._base_source()
        found = {} if base is None else {"base": base}
        for number, expert in enumerate(self._experts, 1):
            found[f"expert {number}"] = find_source(expert, self._options, base)
        return found


def _check_values(tensors: StoredTensors) -> LoadCheck:
    problems, unread = find_nonfinite(tensors)
    detail = f"no NaN or Inf in {len(tensors.places) - len(unread)} tensors"
    if unread:
        detail += f"; torch cannot read {len(unread)}, the first is {unread[0]}"
    return failed("values", problems) if problems else passed("values", detail)


def _attempt(name: str, requested: bool, check: Callable[[], LoadCheck]) -> LoadCheck:
    try:
        return check()
    except (NotCheckedError, EigenmergeError) as error:
        return LoadCheck(name, "not checked", str(error), requested=requested)


def _base_of_adapter(folder: Path) -> str | None:
    path = folder / ADAPTER_CONFIG_NAME
    content = parse_json_object(path.read_bytes(), ADAPTER_CONFIG_NAME, LONGEST_CONFIG_BYTES, finite=False)
    found = content.get("base_model_name_or_path")
    return found if isinstance(found, str) and found else None
