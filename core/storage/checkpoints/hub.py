"""Models on the Hugging Face Hub: resolve a revision to a commit, so that all workers read the same weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from ...errors import CheckpointError
from ...formats.redaction import find_secrets, redact
from ..addresses import select_options
from ..backends.near_paths import near_path
from ..first_contact import FirstContact
from ..retries import RetryPolicy, call_with_retries

# Short: the Hub's client retries downloads itself, and a misspelled local path that looks like a Hub id must fail soon.
HUB_RETRY = RetryPolicy(attempts=3, first_wait_seconds=0.5, total_seconds=60.0)

_MODEL = re.compile(r"hf://(?P<id>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(?P<rest>/.*)?")
# The client's time limit holds for each address of the Hub and not for the lookup of its name, so it is not enough.
_TIMEOUT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 10.0
_LOOKUP = RetryPolicy(attempts=3, first_wait_seconds=0.5, total_seconds=8.0)


def pin_revision(uri: str, storage_options: Mapping[str, object] | None) -> str:
    """Return hf://owner/name@<commit>/rest for hf://owner/name[@revision]/rest: a branch may move during a merge.

    Raises
    ------
    CheckpointError : no such model or revision, or one that requires a token
    StoreError : the Hub does not respond
    """
    match = _MODEL.fullmatch(uri)
    if match is None:
        raise CheckpointError(
            f"{uri!r} is not a model on the Hub; expected hf://owner/name or hf://owner/name@revision"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    model_id = match["id"]
    options = select_options(uri, storage_options)
    endpoint, token = (options.get(name) for name in ("endpoint", "token"))
    api = HfApi(endpoint=str(endpoint) if endpoint else None, token=str(token) if token else None)
    revision = unquote(match["revision"]) if match["revision"] else None

    def find_commit() -> str:
        try:
            return api.model_info(model_id, revision=revision, timeout=_TIMEOUT_SECONDS).sha or ""
        except RevisionNotFoundError:
            raise _no_such_model(f"model {model_id} has no revision {revision!r}") from None
        except (RepositoryNotFoundError, HFValidationError):
            raise _no_such_model(
                f"{model_id} is neither a local directory nor a model on the Hub, or the model requires a token"
                f"{_near_local_path(model_id)}"
            ) from None

    hint = f"there is no such local path{_near_local_path(model_id)}"
    what = f"looking up {uri} on the Hub ({hint})"
    where = f" at {redact(str(endpoint))}" if endpoint else ""
    server = f"the Hub{where}, to look up {uri} ({hint})"
    contact = FirstContact(server, lambda: call_with_retries(find_commit, _LOOKUP, what, find_secrets(options)))
    commit = contact.finish(LONGEST_WAIT_SECONDS)
    return f"hf://{model_id}@{commit}{match['rest'] or ''}" if commit else uri


def _near_local_path(model_id: str) -> str:
    """Return a hint where a misspelled local path looks like a Hub id; "" where no path is similar."""
    hint = near_path(model_id)
    return redact(hint) if hint.startswith("; did you mean") and Path(model_id).parent.is_dir() else ""


def _no_such_model(reason: str) -> CheckpointError:
    return CheckpointError(f"no such model: {reason}; correct the name, or log in with `hf auth login`")
