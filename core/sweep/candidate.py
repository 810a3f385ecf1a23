"""One candidate of a sweep, as an evaluator sees it: a lazy mapping of merged tensors, or a directory on demand."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import final

import torch

from ..cache.spectra.kept_spectra import KeptSpectra
from ..coordination.devices import hold_device
from ..coordination.stop import StopSignal
from ..coordination.threads import one_thread, use_one_thread
from ..errors import EvaluatorError
from ..merging.tensor_merger import TensorMerger
from ..planning.plan import Plan, TensorPlan
from ..planning.shards import OutputEntry, output_entries
from ..recipe.settings import Scalar
from ..run import Run
from ..storage.checkpoints.tensor_reader import TensorReader
from ..storage.torch_dtypes import torch_dtype
from .checkpoint_folder import write_checkpoint_folder
from .shared_tensors import SharedTensors

Report = Callable[[int, float], None]


def _report_nothing(step: int, value: float) -> None:
    return None


@final
class Candidate(Mapping[str, torch.Tensor]):
    """The merged checkpoint of one setting: tensor by name, merged when it is asked for and not kept.

    The tensors have the bytes that `eigenmerge merge` writes. Thread-safe.

    settings : the values of the parameters that the sweep varies
    label : the same as text, "exp_time=300, rank_ratio=0.85"

    Parameters
    ----------
    run : the plan of the candidate, and the store with its spectra
    shared : tensors that all candidates have in common
    spectra : spectra in memory, of all candidates
    report : receives intermediate scores
    """

    def __init__(
        self,
        run: Run,
        settings: Mapping[str, Scalar],
        *,
        label: str = "",
        workers: int = 1,
        scratch: str | None = None,
        shared: SharedTensors | None = None,
        spectra: KeptSpectra | None = None,
        report: Report = _report_nothing,
        stop: StopSignal | None = None,
    ) -> None:
        self.settings = dict(settings)
        self.label = label
        self._run = run
        self._workers = workers
        self._scratch = scratch
        self._shared, self._spectra = shared, spectra
        self._report = report
        self._stop = stop or StopSignal()
        self._folder: Path | None = None
        self._lock = threading.Lock()
        self._tensors: dict[str, tuple[TensorPlan, OutputEntry]] = {
            entry.name: (tensor, entry)
            for shard in run.plan.shards
            for tensor in shard.tensors
            for entry in output_entries(tensor)
        }

    @property
    def plan(self) -> Plan:
        """The plan of this candidate's merge."""
        return self._run.plan

    def __getitem__(self, name: str) -> torch.Tensor:
        """Merge one tensor. Returns a Tensor on the CPU, in the output dtype."""
        tensor, entry = self._tensors[name]
        with one_thread():
            data = self._bytes_of(tensor)
        return _tensor_of(data, tensor, entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Candidate({self.label})"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Merge all tensors, in parallel. Memory: the whole checkpoint."""
        tensors = [tensor for shard in self.plan.shards for tensor in shard.tensors]
        with one_thread(), ThreadPoolExecutor(self._workers, thread_name_prefix="candidate") as pool:
            found = list(pool.map(self._bytes_in_thread, tensors))
        return {
            entry.name: _tensor_of(data, tensor, entry)
            for tensor, data in zip(tensors, found, strict=True)
            for entry in output_entries(tensor)
        }

    def directory(self) -> Path:
        """Return a Hugging Face directory with this checkpoint. It is made at the first call and deleted after the
        evaluation.
        """
        with self._lock:
            if self._folder is None:
                folder = Path(tempfile.mkdtemp(prefix="eigenmerge-candidate-", dir=self._scratch))
                try:
                    with one_thread():
                        write_checkpoint_folder(self._run, folder, self._bytes_in_thread, workers=self._workers)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                self._folder = folder
            return self._folder

    def report(self, step: int, value: float) -> None:
        """Report the score so far, where higher is better if it is for the metric that is ranked by.

        An optimizer with a pruner ends the evaluation of a candidate that is unlikely to be the best, by an exception
        that the evaluator must not catch.

        Raises
        ------
        EvaluatorError : not a finite number
        """
        if not math.isfinite(value):
            raise EvaluatorError(f"the evaluator reported {value} at step {step}; expected a finite number")
        self._report(step, value)

    def close(self) -> None:
        """Delete the directory."""
        with self._lock:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _bytes_in_thread(self, tensor: TensorPlan) -> memoryview:
        use_one_thread()
        return self._bytes_of(tensor)

    def _bytes_of(self, tensor: TensorPlan) -> memoryview:
        if self._shared is not None and tensor in self._shared:
            return self._shared.get(tensor, self._merge)
        return self._merge(tensor)

    def _merge(self, tensor: TensorPlan) -> memoryview:
        settings = self._run.plan.settings
        with hold_device(settings.device, self._stop) as device:
            reader = TensorReader(self._run.storage_options)
            merger = TensorMerger(replace(settings, device=device), self._run.store, reader, kept=self._spectra)
            return merger.merge(tensor)[0]


def _tensor_of(data: memoryview, tensor: TensorPlan, entry: OutputEntry) -> torch.Tensor:
    """Return one stored tensor of the bytes of a planned tensor, which it shares."""
    start = 0
    for other in output_entries(tensor):
        if other.name == entry.name:
            break
        start += other.num_bytes
    dtype = torch_dtype(entry.dtype)
    if entry.num_bytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(data[start : start + entry.num_bytes]), dtype=torch.uint8)
    return flat.view(dtype).reshape(entry.shape)
