"""SpectralMerger: spectra from the store or computed, the facts that are reported, SVC, alignment, damaged spectra."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.cache.sealed_json import write_sealed_json
from eigenmerge.core.cache.spectra.reader import read_spectrum
from eigenmerge.core.errors import NonFiniteError, StoreError
from eigenmerge.core.merging.expert_stream import ExpertStream
from eigenmerge.core.merging.kept_sums import KeptSums
from eigenmerge.core.merging.spectral_facts import SpectralFacts, combine_facts
from eigenmerge.core.merging.spectral_merger import SpectralMerger
from eigenmerge.core.numerics.task_vectors import to_dense
from eigenmerge.core.planning.plan import MatrixView, RunSettings, TensorPlan
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.store import Store

from .examples import NAME, Weight, random

CPU = torch.device("cpu")
ALIGNED = {"exp_time": 10.0, "alignment_rho": 1.0}
KEY, SVC_KEY, SUMS_KEY = "spectra/a.arrow", "spectra/svc.arrow", "sums/a/000003-x.safetensors"


@dataclass
class Outcome:
    """One matrix after its filter, and what was read for it."""

    delta: torch.Tensor
    facts: SpectralFacts
    bytes_read: int
    merger: SpectralMerger


class Matrix:
    """Merges one weight, again and again, with one store."""

    def __init__(self, folder: Path, *shape: int, **keys: Any) -> None:
        self.weight = Weight.random(folder / "models", *shape, **keys)
        self.store = Store(str(folder / "store"))

    def plan(self, method: str = "swudi", **keys: Any) -> TensorPlan:
        return self.weight.plan(method=method, spectrum_key=KEY, **keys)

    def stream(self, plan: TensorPlan, view: MatrixView | None = None) -> ExpertStream:
        return ExpertStream(plan, TensorReader(), torch.float32, CPU, view=view)

    def merger(self, **settings: Any) -> SpectralMerger:
        return SpectralMerger(
            RunSettings(**settings), self.store, KeptSums(self.store, CPU, torch.float32), CPU, torch.float32
        )

    def merge(self, plan: TensorPlan, view: MatrixView | None = None, **settings: Any) -> Outcome:
        merger, stream = self.merger(**settings), self.stream(plan, view)
        with torch.no_grad():
            delta, facts = merger.merged_delta(stream)
            return Outcome(to_dense(delta), facts, stream.reader.bytes_read, merger)

    def expected(self, method: str = "swudi", **keys: Any) -> torch.Tensor:
        return merge_task_vectors(self.weight.deltas, method=method, **keys)


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    return Matrix(tmp_path, 8, 6)


def test_a_spectrum_is_computed_once(matrix: Matrix) -> None:
    parameters = {"exp_time": 30.0, "rank_ratio": 0.5, "scale": 0.7}
    first = matrix.merge(matrix.plan(parameters=parameters))
    torch.testing.assert_close(first.delta, matrix.expected(**parameters), rtol=1e-5, atol=1e-6)
    second = matrix.merge(matrix.plan(parameters=parameters))
    assert torch.equal(second.delta, first.delta)
    assert (first.facts.origin, second.facts.origin) == ("computed", "reused")
    assert first.bytes_read > 0 and second.bytes_read == 0
    assert first.merger.notes == second.merger.notes == []


def test_the_facts_are_rank_and_share_of_the_eigenvalues(matrix: Matrix) -> None:
    facts = matrix.merge(matrix.plan(parameters={"rank_ratio": 0.5})).facts
    values = read_spectrum(matrix.store, KEY).spectrum.values
    assert (facts.rank, facts.spectrum_key, facts.notes) == (3, KEY, ())
    assert facts.energy == pytest.approx(float(values[:3].sum() / values.sum()), rel=1e-6)
    assert matrix.merge(matrix.plan()).facts.energy == 1.0


@pytest.mark.parametrize(
    ("method", "parameters"), [("swudi_a", {}), ("wudi_pinv", {}), ("swudi", {"exp_time": 5.0, "scale": 0.1})]
)
def test_another_filter_reads_no_expert(matrix: Matrix, method: str, parameters: dict[str, Any]) -> None:
    matrix.merge(matrix.plan(parameters={"rank_ratio": 0.2}))
    found = matrix.merge(matrix.plan(method, parameters=parameters))
    assert found.facts.origin == "reused" and found.bytes_read == 0
    torch.testing.assert_close(found.delta, matrix.expected(method, **parameters), rtol=1e-4, atol=1e-5)


def test_weights_of_the_experts(matrix: Matrix) -> None:
    weights = (0.5, -1.0, 2.0)
    found = matrix.merge(matrix.weight.plan(method="swudi", spectrum_key=KEY, weights=weights))
    torch.testing.assert_close(found.delta, matrix.expected(weight=list(weights)), rtol=1e-4, atol=1e-6)


def test_experts_equal_to_the_base_have_no_energy(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, 8, 6, size=0.0)
    found = matrix.merge(matrix.plan("swudi_a"))
    assert found.facts.energy == 0.0 and torch.equal(found.delta, torch.zeros(8, 6))


@pytest.mark.parametrize("damage", [b"", b"no spectrum"])
def test_a_damaged_spectrum_is_noted_and_replaced(matrix: Matrix, damage: bytes) -> None:
    first = matrix.merge(matrix.plan())
    content = matrix.store.read(KEY)
    matrix.store.write(KEY, damage)
    again = matrix.merge(matrix.plan())
    (note,) = again.merger.notes
    assert matrix.store.display(KEY) in note and note.endswith("computed again")
    assert torch.equal(again.delta, first.delta) and again.facts.origin == "computed"
    assert matrix.store.read(KEY) == content


@pytest.mark.parametrize("spectra", ["values", "none"])
def test_vectors_that_are_not_kept_are_computed_in_every_run(matrix: Matrix, spectra: str) -> None:
    first, second = (matrix.merge(matrix.plan(), spectra=spectra) for _ in range(2))
    assert first.facts.origin == second.facts.origin == "computed"
    assert torch.equal(first.delta, second.delta)
    assert matrix.store.exists(KEY) == (spectra == "values")
    assert len(first.merger.rows) == (spectra == "values")


def test_rows_of_the_table_name_the_part(matrix: Matrix) -> None:
    view = MatrixView("k", 2, 5, "spectra/k.arrow")
    found = matrix.merge(matrix.weight.plan(method="swudi", views=(view,)), view)
    torch.testing.assert_close(
        found.delta, merge_task_vectors([delta[2:5] for delta in matrix.weight.deltas]), rtol=1e-4, atol=1e-6
    )
    assert found.facts.spectrum_key == "spectra/k.arrow"
    (row,) = found.merger.rows
    assert (row.name, row.spectrum_key) == (f"{NAME}[k]", "spectra/k.arrow")


def test_the_header_of_a_spectrum_records_its_origin(matrix: Matrix) -> None:
    matrix.merge(matrix.weight.plan(method="swudi", spectrum_key=KEY, weights=(1.0, 2.0, 3.0)))
    provenance = read_spectrum(matrix.store, KEY).provenance
    assert (provenance["tensor"], provenance["part"], provenance["method"]) == (NAME, None, "swudi")
    assert provenance["weights"] == [1.0, 2.0, 3.0] and provenance["arithmetic"] == "float32"


class TestCalibration:
    """SVC after a method."""

    def plan(self, matrix: Matrix, method: str, **svc: Any) -> TensorPlan:
        return matrix.plan(method, calibration={"svc": svc}, calibration_key=SVC_KEY)

    @pytest.mark.parametrize("method", ["swudi", "tsv_m"])
    @pytest.mark.parametrize("svc", [{"alpha": 0.5}, {"alpha": 2}, {}, {"alpha": None}])
    def test_it_equals_the_tensor_level_call(self, matrix: Matrix, method: str, svc: dict[str, Any]) -> None:
        found = matrix.merge(self.plan(matrix, method, **svc))
        expected = matrix.expected(method, calibration={"svc": svc})
        torch.testing.assert_close(found.delta, expected, rtol=1e-4, atol=1e-5)
        assert (expected - matrix.expected(method)).norm() > 0.01 * expected.norm()

    def test_another_alpha_reads_no_expert(self, matrix: Matrix) -> None:
        first = matrix.merge(self.plan(matrix, "swudi", alpha=0.5))
        second = matrix.merge(self.plan(matrix, "swudi", alpha=0.9))
        assert (first.facts.origin, second.facts.origin) == ("computed", "reused")
        assert second.bytes_read == 0 and matrix.store.exists(SVC_KEY)
        assert not torch.allclose(first.delta, second.delta)

    def test_rank_and_energy_are_those_of_the_method(self, matrix: Matrix) -> None:
        plain = matrix.merge(matrix.plan("swudi_a"))
        found = matrix.merge(self.plan(matrix, "swudi_a")).facts
        assert (found.rank, found.energy, found.spectrum_key) == (plain.facts.rank, plain.facts.energy, KEY)

    def test_equal_singular_values_are_noted(self, tmp_path: Path) -> None:
        matrix = Matrix(tmp_path, 4, 4, num_experts=1)
        assert matrix.weight.base is not None
        matrix.weight = Weight(tmp_path / "flat", matrix.weight.base, [matrix.weight.base + torch.eye(4)])
        (note,) = matrix.merge(self.plan(matrix, "swudi")).facts.notes
        assert "4 of 4 singular values of the merged delta are equal" in note

    def test_the_plan_has_warned_about_methods_that_make_them_equal(self, matrix: Matrix) -> None:
        assert matrix.merge(self.plan(matrix, "iso_c")).facts.notes == ()


class TestKeptSums:
    """A tensor with a key for its sums."""

    def test_the_second_run_reads_sums_instead_of_experts(self, matrix: Matrix) -> None:
        plan = matrix.plan(sums_key=SUMS_KEY, members=("a", "b", "c"))
        first = matrix.merge(plan)
        torch.testing.assert_close(first.delta, matrix.expected(), rtol=1e-4, atol=1e-6)
        matrix.store.delete([KEY])
        again = matrix.merge(plan)
        assert torch.equal(again.delta, first.delta)
        assert again.facts.origin == "computed" and again.bytes_read == 0


class TestLargestValue:
    """The value that alignment of layers needs."""

    def test_it_is_the_first_eigenvalue(self, matrix: Matrix) -> None:
        ((key, value, origin),) = matrix.merger().largest_values(matrix.stream(matrix.plan()))
        assert (key, origin) == (KEY, "computed")
        assert value == float(read_spectrum(matrix.store, KEY).spectrum.values[0])
        stream = matrix.stream(matrix.plan())
        assert matrix.merger().largest_values(stream) == [(KEY, value, "reused")] and stream.reader.bytes_read == 0

    def test_it_is_zero_where_all_experts_are_the_base(self, tmp_path: Path) -> None:
        matrix = Matrix(tmp_path, 8, 6, size=0.0)
        assert matrix.merger().largest_values(matrix.stream(matrix.plan()))[0][1] == 0.0

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        matrix = Matrix(tmp_path, 4, 4, num_experts=1)
        matrix.weight = Weight(tmp_path / "nan", random(1, 4, 4), [torch.full((4, 4), math.nan)])
        with pytest.raises(NonFiniteError):
            matrix.merger().largest_values(matrix.stream(matrix.plan()))
        found = matrix.merger(allow_nonfinite=True).largest_values(matrix.stream(matrix.plan()))
        assert found == [(KEY, 0.0, "none")] and not matrix.store.exists(KEY)

    def test_without_a_base_they_are_an_error_in_any_case(self, tmp_path: Path) -> None:
        matrix = Matrix(tmp_path, 4, 4, num_experts=1)
        matrix.weight = Weight(tmp_path / "nan", None, [torch.full((4, 4), math.nan)])
        with pytest.raises(NonFiniteError):
            matrix.merger(allow_nonfinite=True).largest_values(matrix.stream(matrix.plan()))


class TestAlignment:
    """A layer whose filter time depends on the other layers."""

    def test_the_filter_time_is_that_of_the_layer(self, matrix: Matrix) -> None:
        largest = float(torch.linalg.eigvalsh(sum(d.T @ d / d.square().sum() for d in matrix.weight.deltas))[-1])
        values = {KEY: largest, "spectra/other.arrow": 4 * largest}
        write_sealed_json(
            matrix.store, "alignments/a.json", {"format": 1, "key": "alignments/a.json", "largest_values": values}
        )
        plan = matrix.plan(parameters=ALIGNED, alignment_key="alignments/a.json")
        # the geometric mean is twice the value of this layer
        expected = matrix.expected(exp_time=20.0)
        torch.testing.assert_close(matrix.merge(plan).delta, expected, rtol=1e-4, atol=1e-6)
        assert (expected - matrix.expected(exp_time=10.0)).norm() > 0.01 * expected.norm()

    def test_a_table_that_is_gone_is_an_error(self, matrix: Matrix) -> None:
        with pytest.raises(StoreError, match="run the same command again"):
            matrix.merge(matrix.plan(parameters=ALIGNED, alignment_key="alignments/a.json"))


def test_facts_of_several_matrices() -> None:
    facts = [
        SpectralFacts(3, 0.9, "reused", "spectra/q.arrow", ("first",)),
        SpectralFacts(2, 0.5, "computed", "spectra/k.arrow"),
        SpectralFacts(1, 0.7, "reused", "spectra/v.arrow", ("second",)),
    ]
    assert combine_facts(facts) == SpectralFacts(6, 0.5, "computed", "spectra/q.arrow", ("first", "second"))
    assert combine_facts(facts[::2]).origin == "reused"
