"""A model repository on the Hugging Face Hub: check access, list its files, and write one commit.

All files of a push arrive in one commit, so a reader sees the old model or the new one. huggingface_hub uploads the
content of large files before the commit; content that has arrived is not sent again, so a push that was killed goes on
where it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import DestinationError, StoreError
from ..formats.redaction import redact
from ..storage.addresses import select_options
from ..storage.first_contact import FirstContact
from ..storage.retries import RetryPolicy, call_with_retries, http_status

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

Result = TypeVar("Result")

_LOOKUP = RetryPolicy(attempts=3, first_wait_seconds=0.5, total_seconds=8.0)
_UPLOAD = RetryPolicy(attempts=5, first_wait_seconds=1.0, total_seconds=600.0)
_LONGEST_WAIT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the repository.

    sha256 : of a large file; None for one that git stores
    git_sha1 : of the blob that git stores
    """

    size: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository that may be written.

    head : its last commit; None where it has none
    files : by name, as of `head`
    """

    name: str
    api: Any = field(repr=False)  # HfApi, whose methods have partial types
    token: str = field(repr=False)
    head: str | None
    files: Mapping[str, RemoteFile]

    @property
    def url(self) -> str:
        """The address of its page."""
        return f"{self.api.endpoint}/{self.name}"


def open_repository(name: str, options: Mapping[str, object] | None, *, public: bool) -> HubRepository:
    """Return a repository after a check of the token, and create it where it does not exist.

    Creating it shows that the token may write there, before hours of work.

    Parameters
    ----------
    name : owner/name
    options : of fsspec; `token` and `endpoint` of "hf" are used. Default: the token of `hf auth login` or HF_TOKEN
    public : a new repository is public, and an existing one must be; otherwise private

    Raises
    ------
    DestinationError : no token, or one that is refused; the repository is not as `public` says
    StoreError : the Hub does not answer
    """
    from huggingface_hub import HfApi, get_token

    known = select_options("hf://", options)
    endpoint = str(known["endpoint"]) if known.get("endpoint") else None
    token = str(known["token"]) if known.get("token") else get_token()
    if not token:
        raise DestinationError(f"{name}: there is no token for the Hub; run `hf auth login`, or set HF_TOKEN")
    api: Any = HfApi(endpoint=endpoint, token=token)

    def look() -> HubRepository:
        user = _ask(api.whoami, f"checking the token at {_place(api)}", name, token)
        _check_role(user, name)
        return _find(api, name, token, public)

    # A thread of its own: the client's time limit does not hold for the lookup of a host name.
    return FirstContact(f"the Hub at {_place(api)}", look).finish(_LONGEST_WAIT_SECONDS)


def read_small_file(repository: HubRepository, name: str, limit: int) -> bytes | None:
    """Return a file of the repository as of its head; None where it is larger than `limit` bytes.

    Raises
    ------
    StoreError : it cannot be downloaded
    """
    if repository.files[name].size > limit:
        return None

    def download(place: str) -> bytes:
        found = repository.api.hf_hub_download(repository.name, name, revision=repository.head, local_dir=place)
        return Path(found).read_bytes()

    with tempfile.TemporaryDirectory(prefix="eigenmerge-hub-") as place:
        return _ask(lambda: download(place), f"reading {name} of {repository.name}", repository.name, repository.token)


def upload_content(repository: HubRepository, addition: CommitOperationAdd) -> None:
    """Upload the content of one large file, for a later commit. Small files are not sent yet.

    Raises
    ------
    DestinationError : the token may not write
    StoreError : failed after all retries
    """
    what = f"uploading {addition.path_in_repo} to {repository.name}"
    _ask(
        lambda: repository.api.preupload_lfs_files(repository.name, [addition], free_memory=False),
        what,
        repository.name,
        repository.token,
        _UPLOAD,
    )


def commit(
    repository: HubRepository, additions: Sequence[CommitOperationAdd], deletions: Sequence[str], message: str
) -> str:
    """Write one commit on top of the head that was seen, and return the address of it.

    Raises
    ------
    DestinationError : the repository was changed meanwhile; the token may not write
    StoreError : failed
    """
    from huggingface_hub import CommitOperationDelete

    operations = [*additions, *(CommitOperationDelete(name) for name in deletions)]

    def send() -> str:
        done = repository.api.create_commit(
            repository.name, operations, commit_message=message, parent_commit=repository.head
        )
        return str(done.commit_url)

    # Not repeated: after a lost answer the parent is no longer the head.
    once = RetryPolicy(attempts=1)
    return _ask(send, f"writing the commit to {repository.name}", repository.name, repository.token, once)


def _find(api: Any, name: str, token: str, public: bool) -> HubRepository:
    from huggingface_hub.errors import RepositoryNotFoundError

    what = f"looking up {name} on the Hub"

    def lookup() -> HubRepository | None:
        try:
            info = api.model_info(name, timeout=10.0)
        except RepositoryNotFoundError:
            return None
        if bool(info.private) == public:
            found, wanted = ("public", "pass --public") if public is False else ("private", "leave out --public")
            raise DestinationError(
                f"{name}: the repository is {found}; {wanted}, or change its visibility in its settings on the Hub"
            )
        return HubRepository(name, api, token, info.sha, _list_files(api, name, info.sha))

    found = _ask(lookup, what, name, token)
    if found is not None:
        return found
    _ask(lambda: api.create_repo(name, private=not public), f"creating {name} on the Hub", name, token)
    created = _ask(lookup, what, name, token)
    if created is None:
        raise StoreError(f"{name}: the Hub created the repository and does not find it; run the command again")
    return created


def _list_files(api: Any, name: str, revision: str | None) -> dict[str, RemoteFile]:
    if revision is None:
        return {}
    found: dict[str, RemoteFile] = {}
    for entry in api.list_repo_tree(name, recursive=True, revision=revision):
        size = getattr(entry, "size", None)
        if size is not None:  # otherwise a folder
            large = getattr(entry, "lfs", None)
            found[entry.path] = RemoteFile(size, None if large is None else large.sha256, getattr(entry, "blob_id", ""))
    return found


def _check_role(user: Mapping[str, object], name: str) -> None:
    """Check that the token is not for reading only. Rights of other kinds show when the repository is written."""
    access: Any = user
    for key in ("auth", "accessToken", "role"):
        access = cast("Mapping[str, Any]", access).get(key) if isinstance(access, Mapping) else None
    if access == "read":
        raise DestinationError(f"{name}: the token can only read; create one that can write (hf.co/settings/tokens)")


def _ask(request: Callable[[], Result], what: str, name: str, token: str, policy: RetryPolicy = _LOOKUP) -> Result:
    """Send a request to the Hub, with retries, and translate its refusals."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    def translated() -> Result:
        try:
            return request()
        except OfflineModeIsEnabled:
            raise StoreError(f"{what}: HF_HUB_OFFLINE is set; unset it to use the Hub") from None
        except Exception as error:
            answer: BaseException | None = error  # the client wraps errors of uploads
            while answer is not None and not isinstance(answer, HfHubHTTPError):
                answer = answer.__cause__
            refusal = None
            if answer is not None:
                refusal = _refusal(http_status(answer), name, str(answer.server_message or ""), token)
            if refusal is None:
                raise
            raise refusal from None

    return call_with_retries(translated, policy, what, (token,))


def _refusal(status: int | None, name: str, message: str, token: str) -> DestinationError | None:
    """Return the error for a status that no repetition changes; None for others."""
    said = f" ({redact(' '.join(message.split()), (token,))[:200]})" if message else ""
    if status == 401:
        return DestinationError(f"{name}: the Hub refuses the token{said}; run `hf auth login`, or correct HF_TOKEN")
    if status == 403:
        return DestinationError(
            f"{name}: the token may not write there{said}; choose an owner that you are or belong to, or a token that"
            " can write"
        )
    if status == 404:
        return DestinationError(f"{name}: the Hub does not find the repository, or hides it from this token{said}")
    if status in (409, 412):
        return DestinationError(f"{name}: the repository was changed at the same time{said}; run the command again")
    if status == 400:
        return DestinationError(f"{name}: the Hub refuses the request{said}")
    return None


def _place(api: Any) -> str:
    return redact(str(api.endpoint))
