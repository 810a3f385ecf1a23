"""A web server for a folder, in the forms that real ones have: with and without byte ranges and index pages."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class WebServer:
    """ranges, index : whether the server sends parts of files and index pages
    absent : status for a file that does not exist
    page : status 200 and a page for a file that does not exist, as single-page applications send
    query : what each request must have as query string, else 403
    redirect : send each request of /moved/x to /x
    etags : send an etag, in place of the time of change
    """

    folder: Path
    ranges: bool = True
    index: bool = True
    absent: int = 404
    page: bool = False
    query: str = ""
    etags: bool = True
    dated: bool = True
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def serve(folder: Path, **form: object) -> Iterator[WebServer]:
    """Serve a folder until the block ends."""
    state = WebServer(folder, **form)  # pyright: ignore[reportArgumentType]

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # pyright: ignore[reportArgumentType]

        def log_message(self, format: str, *args: object) -> None:
            state.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}")

        def end_headers(self) -> None:
            self._headers_buffer = [
                line for line in self._headers_buffer if state.dated or not line.startswith(b"Last-Modified")
            ]
            super().end_headers()

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.query != state.query:
                return self.answer(403, b"no")
            if parts.path.startswith("/moved/"):
                query = f"?{parts.query}" if parts.query else ""
                return self.answer(302, b"", Location=parts.path.removeprefix("/moved") + query)
            path = Path(self.translate_path(self.path))
            if path.is_dir() and state.index:
                return super().do_GET()
            if not path.is_file():
                return self.answer(200 if state.page else state.absent, b"<html>", Content_Type="text/html")
            data, status, headers = path.read_bytes(), 200, {"Content_Type": "application/octet-stream"}
            if state.etags:
                headers["ETag"] = f'"{path.stat().st_mtime_ns:x}-{len(data):x}"'
            elif state.dated:
                headers["Last_Modified"] = self.date_time_string(path.stat().st_mtime)
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            if state.ranges and wanted:
                start, stop = (int(number) for number in wanted.split("-"))
                headers["Content_Range"] = f"bytes {start}-{min(stop + 1, len(data)) - 1}/{len(data)}"
                status = 206
                if start >= len(data):
                    status, headers["Content_Range"] = 416, f"bytes */{len(data)}"
                data = data[start : stop + 1] if status == 206 else b""
            with contextlib.suppress(ConnectionError):
                self.answer(status, data, **headers)

        def do_HEAD(self) -> None:
            self.answer(403, b"")  # as a URL that is signed for GET

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client may close a connection at any time."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
