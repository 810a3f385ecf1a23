"""A proxy in front of an S3 server that injects the failures of networks and servers, at random with a seed."""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Faults:
    """The share of requests that get each fault, 0 to 1. May be changed while the proxy runs."""

    errors: float = 0.0  # 500 or 503, the request is not passed on
    short_bodies: float = 0.0  # half of a body, with the Content-Length of the whole or of the half
    resets: float = 0.0  # the connection is reset and the request is not passed on
    lost_answers: float = 0.0  # the request is passed on, and the connection is reset before the response
    slow_bodies: float = 0.0  # a body that is sent over half a second
    # Called with method and path before a request is passed on, in a thread of its own: may wait, as a distant server.
    hold: Callable[[str, str], object] = field(default=lambda method, path: None)
    outage_until: float = 0.0  # a time of time.monotonic; until then every connection is reset
    dropped_headers: frozenset[str] = frozenset()  # in lower case; not passed on, as by servers that ignore a header
    # The fault of a request by its method and path: "error", "denied" (403), "short", "reset", "lost" or "slow"; None
    # for a random choice.
    decide: Callable[[str, str], str | None] = field(default=lambda method, path: None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: tests kill clients in the middle of a request."""


class FaultyProxy:
    """Listens on a free port of this machine and forwards requests.

    requests : (method, path with query, range) of each request received
    bytes_moved : size of the bodies of requests and responses
    access_keys : the keys that signed the requests
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self.faults = Faults()
        self.requests: list[tuple[str, str, str | None]] = []
        self.counts: dict[str, int] = {}
        self.bytes_moved = 0
        self.access_keys: set[str] = set()
        self._upstream = urlsplit(upstream).netloc
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def choose(self, method: str, path: str) -> str | None:
        """Return the fault of one request, or None."""
        faults = self.faults
        with self._lock:
            if time.monotonic() < faults.outage_until:
                fault: str | None = "reset"
            else:
                fault = faults.decide(method, path)
                shares = {
                    "error": faults.errors,
                    "short": faults.short_bodies,
                    "reset": faults.resets,
                    "lost": faults.lost_answers,
                    "slow": faults.slow_bodies,
                }
                position = self._random.random()
                for name, share in shares.items():
                    if fault is None and position < share:
                        fault = name
                    position -= share
            if fault is not None:
                self.counts[fault] = self.counts.get(fault, 0) + 1
            return fault

    def coin(self) -> bool:
        with self._lock:
            return self._random.random() < 0.5

    def forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {
            name: value for name, value in handler.headers.items() if name.lower() not in self.faults.dropped_headers
        }
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        signed = re.search(r"Credential=([^/]+)/", handler.headers.get("Authorization") or "")
        with self._lock:
            self.bytes_moved += len(body) + len(content)
            if signed:
                self.access_keys.add(signed[1])
        return response, content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests.append((self.command, self.path, self.headers.get("Range")))
                fault = proxy.choose(self.command, self.path)
                if fault == "reset":
                    self.reset()
                elif fault == "error":
                    self.answer_error(*((503, "SlowDown") if proxy.coin() else (500, "InternalError")))
                elif fault == "denied":
                    self.answer_error(403, "AccessDenied")
                else:
                    proxy.faults.hold(self.command, self.path)
                    response, content = proxy.forward(self, body)
                    if fault == "lost":
                        self.reset()
                    else:
                        self.answer(response, content, fault)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def reset(self) -> None:
                # With a linger time of zero, closing sends a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()

            def answer_error(self, status: int, code: str) -> None:
                content = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def answer(self, response: http.client.HTTPResponse, content: bytes, fault: str | None) -> None:
                cut = fault == "short" and self.command == "GET" and len(content) > 1
                sent = content[: len(content) // 2] if cut else content
                announced = len(sent) if cut and proxy.coin() else len(content)
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                        self.send_header(name, value)
                length = response.getheader("Content-Length", "0") if self.command == "HEAD" else str(announced)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault == "slow":
                    for piece in range(5):
                        self.wfile.write(sent[len(sent) * piece // 5 : len(sent) * (piece + 1) // 5])
                        self.wfile.flush()
                        time.sleep(0.1)
                else:
                    self.wfile.write(sent)
                if cut:
                    self.close_connection = True

        return Handler
