"""Models on the Hugging Face Hub: a name and a revision become one commit, so all workers read the same weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...errors import CheckpointError, StoreError
from ...formats.redaction import find_secrets
from ..addresses import options_for
from ..retries import RetryPolicy, call_with_retries

# The Hub's client tries downloads again by itself, and a misspelled path that looks like a Hub id must not take long.
HUB_RETRY = RetryPolicy(attempts=3, first_wait_seconds=0.5, total_seconds=60.0)

_MODEL = re.compile(r"hf://(?P<id>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(?P<rest>/.*)?")


def pin_revision(uri: str, storage_options: Mapping[str, object] | None) -> str:
    """hf://owner/name@<commit>/rest for hf://owner/name[@revision]/rest: a branch may move while a merge runs.

    Raises
    ------
    CheckpointError : no such model or revision, or one that asks for a token
    StoreError : the Hub does not answer, or huggingface_hub is not installed
    """
    match = _MODEL.fullmatch(uri)
    if match is None:
        raise CheckpointError(
            f"{uri!r} is not a model on the Hub; expected hf://owner/name or hf://owner/name@revision"
        )
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise StoreError(
            f"{uri} is on the Hugging Face Hub; install huggingface_hub to read it, or give a local path that exists"
        ) from None
    from urllib.parse import unquote

    options = options_for(uri, storage_options)
    endpoint, token = (options.get(name) for name in ("endpoint", "token"))
    api = HfApi(endpoint=str(endpoint) if endpoint else None, token=str(token) if token else None)
    revision = unquote(match["revision"]) if match["revision"] else None
    found: dict[str, str] = {}

    def ask() -> None:
        try:
            commit = api.model_info(match["id"], revision=revision, timeout=20.0).sha
        except RevisionNotFoundError:
            found["problem"] = f"model {match['id']} has no revision {revision!r}"
        except (RepositoryNotFoundError, HFValidationError):
            found["problem"] = f"{match['id']} is no directory here and no model on the Hub, or one that needs a token"
        else:
            found["commit"] = commit or ""

    call_with_retries(
        ask, HUB_RETRY, f"looking up {uri} on the Hub (there is no such local path)", find_secrets(options)
    )
    if "problem" in found:
        raise CheckpointError(f"no such model: {found['problem']}; correct the name, or log in with `hf auth login`")
    return f"hf://{match['id']}@{found['commit']}{match['rest'] or ''}" if found["commit"] else uri
