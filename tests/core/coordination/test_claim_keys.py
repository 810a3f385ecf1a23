"""Keys of claims: what a claim is about can be read from its key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eigenmerge.core.coordination.claim_keys import (
    ClaimSubject,
    claim_key,
    parse_claim_key,
    run_claim_key,
    spectra_claim_key,
)

hashes = st.text("0123456789abcdef", min_size=1, max_size=64)


@given(hashes)
def test_claims_of_a_part(digest: str) -> None:
    part = f"parts/{digest}.safetensors"
    assert parse_claim_key(claim_key(part)) == ClaimSubject(part_key=part)
    assert parse_claim_key(spectra_claim_key(part)) == ClaimSubject(part_key=part)
    assert claim_key(part) != spectra_claim_key(part), "one process may decompose while another merges"


@given(hashes, hashes, hashes)
def test_claims_of_a_run(run: str, one: str, other: str) -> None:
    assert parse_claim_key(run_claim_key(run, one)) == ClaimSubject(run_key=run)
    if one[:12] != other[:12]:
        assert run_claim_key(run, one) != run_claim_key(run, other), "several processes may hold a run"


def test_names_are_those_of_earlier_versions() -> None:
    """Runs of two versions on one store share the work."""
    assert claim_key("parts/abc.safetensors") == "claims/abc.json"
    assert spectra_claim_key("parts/abc.safetensors") == "claims/abc.safetensors-spectra.json"
    assert run_claim_key("abc", "0123456789abcdef") == "claims/run-abc-0123456789ab.json"


def test_a_foreign_name_is_taken_for_a_part() -> None:
    assert parse_claim_key("claims/notes.txt") == ClaimSubject(part_key="parts/notes.txt.safetensors")
