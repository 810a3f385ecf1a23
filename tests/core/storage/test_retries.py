"""Retries: transient errors are retried, lasting ones are not, and messages are clear and free of secrets."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging
import traceback
import weakref

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from eigenmerge.core.errors import CheckpointError, CorruptObjectError, ObjectNotFoundError, StoreError
from eigenmerge.core.storage.retries import (
    RetryPolicy,
    ShortReadError,
    call_with_retries,
    is_transient,
    translate_errors,
)
from eigenmerge.core.storage.store import Store

QUICK = RetryPolicy(attempts=4, first_wait_seconds=0.001)


def client_error(code: str, status: int) -> ClientError:
    response = {"Error": {"Code": code, "Message": f"{code} it said"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")  # type: ignore[arg-type]


TRANSIENT = [
    client_error("SlowDown", 503),
    client_error("InternalError", 500),
    client_error("ServiceUnavailable", 503),
    client_error("RequestTimeout", 400),
    client_error("502", 502),
    client_error("TooManyRequests", 429),
    client_error("OperationAborted", 409),
    EndpointConnectionError(endpoint_url="http://x"),
    ReadTimeoutError(endpoint_url="http://x"),
    ShortReadError("short"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    ConnectionRefusedError(),
    BrokenPipeError(),
    TimeoutError(),
    OSError(errno.ESTALE, "stale"),
]
LASTING = [
    client_error("AccessDenied", 403),
    client_error("NoSuchKey", 404),
    client_error("NoSuchBucket", 404),
    client_error("InvalidArgument", 400),
    client_error("NotImplemented", 501),
    NoCredentialsError(),
    PermissionError(errno.EACCES, "no"),
    FileNotFoundError(errno.ENOENT, "no"),
    OSError(errno.ENOSPC, "full"),
    IsADirectoryError(errno.EISDIR, "dir"),
    ValueError("what"),
    CorruptObjectError("ours"),
]


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}-{error}"[:40]


class TestTransientErrors:
    @pytest.mark.parametrize("error", TRANSIENT, ids=describe)
    def test_are_retried(self, error: Exception) -> None:
        tries = itertools.count(1)

        def action() -> str:
            if next(tries) < 4:
                raise error
            return "done"

        assert call_with_retries(action, QUICK, "reading x", ()) == "done"

    @pytest.mark.parametrize("error", TRANSIENT, ids=describe)
    def test_are_reported_after_the_last_attempt(self, error: Exception) -> None:
        with pytest.raises(StoreError, match=r"reading x failed after 4 attempts \(") as caught:
            call_with_retries(self.raising(error), QUICK, "reading x", ())
        assert "\n" not in str(caught.value)

    def test_errors_that_s3fs_wraps(self) -> None:
        # s3fs turns a 503 into OSError(EBUSY) and keeps botocore's error as the cause.
        error = OSError(errno.EBUSY, "Please reduce your request rate")
        error.__cause__ = client_error("SlowDown", 503)
        assert is_transient(error)
        denied = PermissionError("Access Denied")
        denied.__cause__ = client_error("AccessDenied", 403)
        assert not is_transient(denied)

    def test_the_total_time_is_limited(self) -> None:
        policy = RetryPolicy(attempts=10**6, first_wait_seconds=0.01, longest_wait_seconds=0.02, total_seconds=0.3)
        with pytest.raises(StoreError, match="failed"):
            call_with_retries(self.raising(TimeoutError()), policy, "reading x", ())

    @staticmethod
    def raising(error: Exception):
        def action() -> None:
            raise error

        return action


class TestLastingErrors:
    @pytest.mark.parametrize("error", LASTING, ids=describe)
    def test_are_raised_at_once(self, error: Exception) -> None:
        tries = itertools.count()

        def action() -> None:
            next(tries)
            raise error

        with pytest.raises(StoreError):
            call_with_retries(action, QUICK, "reading x", ())
        assert next(tries) == 1

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (client_error("AccessDenied", 403), "reading x: permission denied"),
            (client_error("NoSuchKey", 404), "reading x: no such object"),
            (client_error("NoSuchBucket", 404), "reading x: no such bucket"),
            (NoCredentialsError(), "no credentials found"),
            (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
            (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
            (OSError(errno.EROFS, "Read-only file system"), "permission denied"),
        ],
        ids=describe,
    )
    def test_messages(self, error: Exception, message: str) -> None:
        with pytest.raises(StoreError, match=message), translate_errors("reading x", ()):
            raise error

    def test_a_missing_object_has_its_own_type(self) -> None:
        for error in (client_error("NoSuchKey", 404), client_error("404", 404), FileNotFoundError("x")):
            with pytest.raises(ObjectNotFoundError), translate_errors("reading x", ()):
                raise error

    def test_errors_of_eigenmerge_are_unchanged(self) -> None:
        with pytest.raises(CheckpointError, match="mine"), translate_errors("reading x", ()):
            raise CheckpointError("mine")


OPTIONS = {
    "key": "AKIAPLANTED",
    "secret": "planted-secret",
    "token": "planted-token",
    "endpoint_url": "http://user:planted-password@127.0.0.1:1",
    "client_kwargs": {"aws_session_token": "planted-session", "region_name": "eu-west-1"},
}


class TestSecrets:
    def test_no_secret_in_errors_logs_and_representations(self, caplog: pytest.LogCaptureFixture) -> None:
        store = Store("s3://bucket/x", OPTIONS, retry=RetryPolicy(attempts=2, first_wait_seconds=0.01))
        shown = [repr(store), str(store), f"{store}", store.root_uri, store.display("k")]
        with caplog.at_level(logging.INFO, logger="eigenmerge"):
            for action in (lambda: store.read("k"), lambda: store.write("k", b""), lambda: [*store.list()]):
                with pytest.raises(StoreError) as caught:
                    action()
                shown += [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
        shown += [record.getMessage() for record in caplog.records]
        assert not [text for text in shown if "planted" in text.lower()]

    def test_a_cause_that_contains_a_secret_is_removed(self) -> None:
        secret = str(OPTIONS["secret"])
        with pytest.raises(StoreError) as caught, translate_errors("reading x", (secret,)):
            raise ValueError(f"wrong signature for {secret}")
        assert secret not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(StoreError) as caught, translate_errors("reading x", (secret,)):
            raise ValueError("harmless")
        assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("kind", [FileNotFoundError, CorruptObjectError, PermissionError])
def test_an_error_does_not_keep_the_caller_alive(kind: type[Exception]) -> None:
    """The caller holds tensors, and a first run gets "not found" once per spectrum."""

    class Layer:
        pass

    def fail() -> None:
        raise kind("x")

    def caller() -> weakref.ref[Layer]:
        layer = Layer()
        with contextlib.suppress(StoreError):
            call_with_retries(fail, RetryPolicy(), "reading x", ())
        return weakref.ref(layer)

    gc.collect()
    gc.disable()
    try:
        assert caller()() is None
    finally:
        gc.enable()
