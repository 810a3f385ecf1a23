"""Which storage errors can pass, how long to wait for them, and what the user reads when they do not.

Retrying happens here and nowhere else: s3fs and botocore are told to try once (see `s3_backend`), because three nested
loops of five tries turn one dead server into minutes of silence, and only this loop knows that a short read is a
failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_after_delay

from ..errors import EigenmergeError, ObjectNotFoundError, StoreError, one_line
from ..formats.redaction import redact

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Codes of the S3 dialect that pass although their HTTP status alone does not say so, and the other way round.
_PASSING_CODES = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestThrottled",
        "RequestTimeout",
        "InternalError",
        "ServiceUnavailable",
        "OperationAborted",  # 409: another write of the same key is being committed right now
        "ConditionalRequestConflict",
        "BadDigest",  # the body arrived damaged
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
    }
)
_DENIED_CODES = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"})
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_ERRNO = frozenset(
    {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETRESET}
)
# Matched by name, so that neither botocore, aiohttp, urllib3 nor httpx has to be imported (or even installed) for it.
_PASSING_NAMES = frozenset(
    {
        "HTTPClientError",  # botocore: base of connection, time-out and streaming errors
        "ConnectionError",  # botocore, requests
        "ResponseParserError",  # botocore: a throttled server that answers with half an XML document
        "ClientPayloadError",  # aiohttp: the body ended early
        "ClientConnectionError",
        "ServerDisconnectedError",
        "IncompleteRead",
        "ProtocolError",  # urllib3
        "TransportError",  # httpx, google-auth
        "FSTimeoutError",
    }
)


class ShortReadError(Exception):
    """A ranged read that returned fewer bytes than asked, though the object has them: retried, never seen outside."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to try again.

    The waits are first_wait, twice that, four times, ... up to longest_wait, each with up to one second of jitter. The
    defaults ride out an outage of about a minute.
    """

    attempts: int = 10
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 15.0
    total_seconds: float = 120.0


def call_with_retries(action: Callable[[], Result], policy: RetryPolicy, what: str, secrets: tuple[str, ...]) -> Result:
    """Run `action`, again while its failure can pass; raise one clear StoreError when it does not.

    Parameters
    ----------
    action : callable
        Must be safe to run twice.
    what : str
        "reading s3://bucket/key": names the object; already free of credentials
    secrets : strings that must not appear in a message

    Raises
    ------
    ObjectNotFoundError : no object at that place
    StoreError : refused, or still failing after all attempts
    """
    attempt = 0

    def once() -> Result:
        nonlocal attempt
        attempt += 1
        return action()

    def log(_: object) -> None:
        logger.info("%s failed at attempt %d, trying again", what, attempt)

    def wait(state: RetryCallState) -> float:
        doubled = policy.first_wait_seconds * 2.0 ** (state.attempt_number - 1)
        # Not for secrecy: so that a thousand workers do not come back together.
        jitter = random.uniform(0.0, min(1.0, 5 * policy.first_wait_seconds))
        return min(doubled, policy.longest_wait_seconds) + jitter

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(policy.attempts) | stop_after_delay(policy.total_seconds),
        wait=wait,
        before_sleep=log,
        reraise=True,
    )
    try:
        return retrying(once)
    except EigenmergeError as error:
        raise error.with_traceback(None)  # noqa: B904  (it is the same error)
    except Exception as error:
        # Its traceback leads to tenacity's frames, and those back to the error: a cycle, which would keep every
        # caller's tensors until the garbage collector comes by. "Not found" is what every first run meets everywhere.
        cause = _cause_without_secrets(error.with_traceback(None), secrets)
        raise _translated(error, what, attempt, secrets) from cause


@contextlib.contextmanager
def translate_errors(what: str, secrets: tuple[str, ...]) -> Iterator[None]:
    """The same messages for a block that must not run twice."""
    try:
        yield
    except EigenmergeError:
        raise
    except Exception as error:
        raise _translated(error, what, 1, secrets) from _cause_without_secrets(error, secrets)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, EigenmergeError):
        return False
    if isinstance(error, ShortReadError | HTTPException | ConnectionError | TimeoutError | asyncio.TimeoutError):
        return True
    # Before the status: aiohttp hangs a parser's "400" on a body that ended early.
    if any(base.__name__ in _PASSING_NAMES for base in type(error).__mro__):
        return True
    code, status = s3_code(error), http_status(error)
    if code in _PASSING_CODES or status in _PASSING_STATUS:
        return True
    if status is not None:
        return False
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNO


def s3_code(error: BaseException | None) -> str | None:
    """The S3 error code ("NoSuchKey") of a botocore error or of what s3fs made of it, if there is one."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            code = response.get("Error", {}).get("Code")
            if code is not None:
                return str(code)
        error = error.__cause__
    return None


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of botocore, aiohttp, httpx, requests or gcsfs, if there is one."""
    while error is not None:
        response = getattr(error, "response", None)
        candidates = [
            getattr(response, "status_code", None),
            getattr(error, "status", None),
            getattr(error, "code", None),
        ]
        if isinstance(response, Mapping):
            candidates.insert(0, response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        for candidate in candidates:
            if isinstance(candidate, int) and 400 <= candidate < 600:
                return candidate
        error = error.__cause__
    return None


def _translated(error: Exception, what: str, attempts: int, secrets: tuple[str, ...]) -> StoreError:
    code, status = s3_code(error), http_status(error)
    detail = redact(one_line(error) or type(error).__name__, secrets)[:300]
    number = error.errno if isinstance(error, OSError) else None
    if is_transient(error):
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        return StoreError(
            f"{what} still failed after {tries} ({detail}); check the network and the server, then resume"
        )
    if code == "NoSuchBucket":
        return StoreError(f"{what}: no such bucket; create it or correct the address")
    if isinstance(error, FileNotFoundError) or code in {"NoSuchKey", "404"} or status == 404:
        return ObjectNotFoundError(f"{what}: no such object")
    if isinstance(error, PermissionError) or code in _DENIED_CODES or status in {401, 403} or number == errno.EROFS:
        remote = "; where objects may not be listed, a missing object looks the same" if status == 403 else ""
        return StoreError(f"{what}: permission denied ({detail}); check credentials and access rights{remote}")
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
        return StoreError(f"{what}: no credentials found; set them in the environment, a profile or storage_options")
    if number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StoreError(f"{what}: the disk is full ({detail}); free space or name another place, then resume")
    if number in {errno.EISDIR, errno.ENOTDIR}:
        return StoreError(f"{what}: a directory where a file was expected, or the other way round ({detail})")
    return StoreError(f"{what}: {detail}")


def _cause_without_secrets(error: Exception, secrets: tuple[str, ...]) -> Exception | None:
    # A traceback prints the whole chain: keep it only where no link of it names a secret.
    link: BaseException | None = error
    while link is not None:
        if redact(f"{link!s} {link!r}", secrets) != f"{link!s} {link!r}":
            return None
        link = link.__cause__ or link.__context__
    return error
