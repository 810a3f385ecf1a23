"""Retries of storage requests: which errors are transient, how long to wait, and the message after the last attempt.

Requests are retried here only. s3fs and botocore are set to a single attempt (see `s3_backend`): three nested loops of
five attempts would wait for minutes on a dead server, and only this loop treats a short read as a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import TypeVar, cast

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_after_delay

from ..errors import EigenmergeError, ObjectNotFoundError, StoreError, one_line
from ..escaping import printable
from ..formats.redaction import redact

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Error codes of S3 that are transient, whatever their HTTP status.
_TRANSIENT_CODES = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestThrottled",
        "RequestTimeout",
        "InternalError",
        "ServiceUnavailable",
        "OperationAborted",  # 409: another write of the same key is being committed
        "ConditionalRequestConflict",
        "BadDigest",  # the body arrived damaged
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
    }
)
_DENIED_CODES = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"})
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRANSIENT_ERRNO = frozenset(
    {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETRESET}
)
# Class names, so that botocore, aiohttp, urllib3 and httpx need not be imported, or even installed.
_TRANSIENT_CLASSES = frozenset(
    {
        "HTTPClientError",  # botocore: base of connection, time-out and streaming errors
        "ConnectionError",  # botocore, requests
        "ResponseParserError",  # botocore: a throttled server that sends an incomplete XML document
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
    """A ranged read returned fewer bytes than the object has in that range. Retried; callers get a StoreError."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to retry and how long to wait.

    The waits are first_wait_seconds, then doubled each time up to longest_wait_seconds, each with up to one second of
    jitter. The defaults outlast an outage of about a minute.
    """

    attempts: int = 10
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 15.0
    total_seconds: float = 120.0


def call_with_retries(action: Callable[[], Result], policy: RetryPolicy, what: str, secrets: tuple[str, ...]) -> Result:
    """Call `action`, repeat it while its error is transient, and raise a StoreError if it does not succeed.

    Parameters
    ----------
    action : callable
        Must be safe to call twice
    what : str
        What the action does to which object, for messages: "reading s3://bucket/key"; without credentials
    secrets : strings that must not appear in a message

    Raises
    ------
    ObjectNotFoundError : no such object
    StoreError : refused, or still failing after all attempts
    """
    attempt = 0

    def counted_action() -> Result:
        nonlocal attempt
        attempt += 1
        return action()

    def log(_: RetryCallState) -> None:
        logger.info("%s failed at attempt %d; retrying", printable(what), attempt)

    def wait(state: RetryCallState) -> float:
        doubled = policy.first_wait_seconds * 2.0 ** (state.attempt_number - 1)
        # Jitter, so that a thousand workers do not retry at the same moment.
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
        return retrying(counted_action)
    except EigenmergeError as error:
        raise error.with_traceback(None)  # noqa: B904  (the same error)
    except Exception as error:
        # Without its traceback: tenacity's frames refer back to the error, a reference cycle that would keep the
        # caller's tensors alive until the next garbage collection. "Not found" is frequent on every first run.
        cause = _cause_without_secrets(error.with_traceback(None), secrets)
        raise _to_store_error(error, what, attempt, secrets) from cause


@contextlib.contextmanager
def translate_errors(what: str, secrets: tuple[str, ...]) -> Generator[None]:
    """Translate errors raised in the block to StoreError. Does not retry; for blocks that must not run twice."""
    try:
        yield
    except EigenmergeError:
        raise
    except Exception as error:
        raise _to_store_error(error, what, 1, secrets) from _cause_without_secrets(error, secrets)


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later."""
    if isinstance(error, EigenmergeError):
        return False
    if isinstance(error, ShortReadError | HTTPException | ConnectionError | TimeoutError | asyncio.TimeoutError):
        return True
    # Before the status: aiohttp gives a parser's status 400 to a body that ended early.
    if any(base.__name__ in _TRANSIENT_CLASSES for base in type(error).__mro__):
        return True
    code, status = s3_code(error), http_status(error)
    if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUS:
        return True
    if status is not None:
        return False
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def s3_code(error: BaseException | None) -> str | None:
    """Return the S3 error code ("NoSuchKey") of a botocore error, or of the s3fs error that wraps it, or None."""
    while error is not None:
        details = _response_field(error, "Error")
        if "Code" in details and details["Code"] is not None:
            return str(details["Code"])
        error = error.__cause__
    return None


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error of botocore, aiohttp, httpx, requests or gcsfs, or None."""
    while error is not None:
        status = getattr(error, "status", None)
        candidates = (
            _response_field(error, "ResponseMetadata").get("HTTPStatusCode"),
            getattr(getattr(error, "response", None), "status_code", None),
            status if status is not None else getattr(error, "code", None),  # aiohttp has both and warns about `code`
        )
        for candidate in candidates:
            if isinstance(candidate, int) and 400 <= candidate < 600:
                return candidate
        error = error.__cause__
    return None


def _response_field(error: BaseException, name: str) -> Mapping[str, object]:
    """Return a section of the response that botocore attaches to its errors; empty for other errors."""
    response = getattr(error, "response", None)
    if not isinstance(response, Mapping):
        return {}
    return cast("Mapping[str, Mapping[str, object]]", response).get(name, {})


def _to_store_error(error: Exception, what: str, attempts: int, secrets: tuple[str, ...]) -> StoreError:
    code, status = s3_code(error), http_status(error)
    detail = redact(one_line(error) or type(error).__name__, secrets)[:300]
    number = error.errno if isinstance(error, OSError) else None
    if is_transient(error):
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        return StoreError(f"{what} failed after {tries} ({detail}); check the network and the server, then resume")
    if code == "NoSuchBucket":
        return StoreError(f"{what}: no such bucket; create it or correct the address")
    if code == "NoSuchUpload":
        return StoreError(f"{what}: the unfinished upload was removed, by another process or by the server; resume")
    if isinstance(error, FileNotFoundError) and what.startswith(("creating ", "writing ")) and code is None:
        return StoreError(f"{what}: its folder cannot be created ({detail}); choose another location")
    if isinstance(error, FileNotFoundError) or code in {"NoSuchKey", "404"} or status == 404:
        return ObjectNotFoundError(f"{what}: no such object")
    if isinstance(error, PermissionError) or code in _DENIED_CODES or status in {401, 403} or number == errno.EROFS:
        hint = "; without permission to list, a missing object gives the same error" if status == 403 else ""
        return StoreError(f"{what}: permission denied ({detail}); check credentials and access rights{hint}")
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
        return StoreError(f"{what}: no credentials found; set them in the environment, a profile or storage_options")
    if number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StoreError(f"{what}: the disk is full ({detail}); free space or choose another location, then resume")
    if number == errno.EISDIR:
        return StoreError(f"{what}: expected a file, found a directory ({detail})")
    if number in {errno.ENOTDIR, errno.EEXIST}:  # EEXIST: from creating the directory
        return StoreError(f"{what}: expected a directory, found a file ({detail})")
    return StoreError(f"{what}: {detail}")


def _cause_without_secrets(error: Exception, secrets: tuple[str, ...]) -> Exception | None:
    """Return `error` if neither it nor an error that it is chained to contains a secret: tracebacks print them all."""
    link: BaseException | None = error
    while link is not None:
        if redact(f"{link!s} {link!r}", secrets) != f"{link!s} {link!r}":
            return None
        link = link.__cause__ or link.__context__
    return error
