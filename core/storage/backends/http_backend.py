"""Backend for http:// and https://: files on web servers, read only."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from ...errors import CorruptObjectError, ObjectChangedError, StoreError
from ...formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ...formats.file_names import INDEX_NAME, MARKER_NAME
from ...formats.object_names import find_key_problem
from ..addresses import join_address
from ..fsspec_calls import run_coroutine
from ..retries import ShortReadError, http_status
from .fsspec_backend import FsspecBackend
from .http_index import USUAL_NAMES, linked_names, shows_model
from .protocol import ObjectInfo, RequestRunner

# A server without byte ranges sends the whole file for each part of it: small ones are kept, larger ones are refused.
_LARGEST_WHOLE_BYTES = 64 * 2**20
_LONGEST_PAGE_BYTES = 16 * 2**20
_PARALLEL_REQUESTS = 16
_URL_CHARACTERS = "%/:?&=+,;@!$'()*~#[]"


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: Mapping[str, str]
    url: str
    body: bytes

    @property
    def version(self) -> str:
        """What tells two versions of a file apart; "" if the server says nothing."""
        return self.headers.get("ETag") or self.headers.get("Last-Modified") or ""

    @property
    def is_page(self) -> bool:
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html"


class HttpBackend(FsspecBackend):
    """Files below one address of a web server. A query string of the address goes with each request.

    Each read compares the etag of the response, or its Last-Modified, with that of the file that was listed.
    """

    checks_etag = True

    def __init__(self, uri: str, options: Mapping[str, object]) -> None:
        super().__init__(uri, {"encoded": True, **options})
        self._whole: tuple[str, _Response] | None = None  # key and content of the last file without ranges
        self._whole_lock = threading.Lock()

    def info(self, key: str) -> ObjectInfo:
        return self._look_up(key)[0]

    def _look_up(self, key: str) -> tuple[ObjectInfo, _Response]:
        """Return the facts from a read of the first byte: some servers refuse HEAD, or answer it differently."""
        response = self._get(key, 0, 1, needs_body=False)
        size = _stated_size(response)
        if size is None:
            response = self._get_whole(key)
            size = len(response.body)
        modified = 0.0
        with contextlib.suppress(TypeError, ValueError):  # no date, or none of HTTP
            modified = parsedate_to_datetime(response.headers.get("Last-Modified", "")).timestamp()
        return ObjectInfo(key, size, response.version, modified), response

    def list(self, prefix: str, recursive: bool, run_request: RequestRunner) -> Iterator[ObjectInfo]:
        """Yield the files that the index page of a folder shows; without one, those of the usual names that exist.

        Subfolders are left out.
        """
        folder = prefix.rstrip("/")
        linked = run_request(lambda: self._linked_names(folder), "listing")
        has_index = shows_model(linked)
        names = linked | ({MARKER_NAME} if has_index else set(USUAL_NAMES))  # index pages leave out hidden files
        denied: list[int] = []

        def look_up(name: str) -> ObjectInfo | None:
            try:
                info, response = self._look_up(f"{folder}/{name}" if folder else name)
            except FileNotFoundError:
                return None
            except Exception as error:
                # A server that refuses to list may refuse a file that does not exist too.
                if name in linked or http_status(error) not in {401, 403}:
                    raise
                denied.append(http_status(error) or 0)
                return None
            # Some servers answer a missing file with a page.
            return None if name not in linked and response.is_page else info

        def find(name: str) -> ObjectInfo | None:
            return run_request(lambda: look_up(name), f"looking up {name} in")

        with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="http") as pool:
            found = [info for info in pool.map(find, sorted(names)) if info is not None]
            if not has_index and any(info.key == INDEX_NAME for info in found):
                shards = run_request(self._indexed_names, "reading the index of") - {info.key for info in found}
                found += [info for info in pool.map(find, sorted(shards)) if info is not None]
        if denied and not found:
            raise PermissionError(f"status {denied[0]} for every usual file of a model")
        yield from sorted(found, key=lambda info: info.key)

    def _linked_names(self, folder: str) -> set[str]:
        try:
            response = self._get(f"{folder}/" if folder else "", limit=_LONGEST_PAGE_BYTES)
        except FileNotFoundError:
            return set()
        except Exception as error:
            if http_status(error) not in {400, 401, 403, 405}:
                raise
            return set()
        if len(response.body) > _LONGEST_PAGE_BYTES:
            raise StoreError(
                f"{self._shown(folder)} shows an index page of more than {_LONGEST_PAGE_BYTES // 2**20} MiB; download"
                " the model and name its folder"
            )
        return linked_names(response.body.decode(errors="replace"), response.url) if response.is_page else set()

    def _indexed_names(self) -> set[str]:
        """Return the weight files that the index names; what is wrong with it is said where it is read."""
        try:
            data, _ = self.read(INDEX_NAME, LONGEST_INDEX_BYTES)
            content: Any = parse_json_object(data, INDEX_NAME, LONGEST_INDEX_BYTES)
            values = {str(value) for value in content["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return set()
        return {name for name in values if find_key_problem(name) is None and "/" not in name}

    def read(self, key: str, limit: int) -> tuple[bytes, int]:
        response = self._get(key, limit=limit)
        stated = response.headers.get("Content-Length", "") if len(response.body) > limit else ""
        return response.body, max(len(response.body), int(stated) if stated.isdecimal() else 0)

    def read_range(self, key: str, start: int, stop: int, etag: str = "") -> bytes:
        kept = self._whole
        response = kept[1] if kept is not None and kept[0] == key and kept[1].version == etag else None
        if response is None:
            response = self._get(key, start, stop)
        if response.status == 200:  # the server ignores ranges
            response = self._get_whole(key, etag)
        if etag and response.version != etag:
            raise ObjectChangedError(f"{key} was replaced by another file")
        if response.status == 200:
            body = response.body[start:stop]
        else:
            body = response.body
            first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if response.status == 206 and (first is None or int(first[1]) != start):
                raise StoreError(f"{self._shown(key)}: the server sent another range than bytes {start}-{stop - 1}")
        if len(body) != stop - start:
            size = _stated_size(response)
            if size is not None and size < stop:
                raise CorruptObjectError(f"{key} is too short: {size} bytes, expected at least {stop}")
            raise ShortReadError(f"asked for {stop - start} bytes, got {len(body)}")
        return body

    def _get_whole(self, key: str, etag: str = "") -> _Response:
        """Read a file completely and keep it, from a server that sends no parts or does not state the size."""
        with self._whole_lock:
            if self._whole is None or self._whole[0] != key or not etag or self._whole[1].version != etag:
                response = self._get(key, limit=_LARGEST_WHOLE_BYTES)
                if len(response.body) > _LARGEST_WHOLE_BYTES:
                    raise StoreError(self._without_ranges(key))
                self._whole = key, response
            return self._whole[1]

    def _get(
        self, key: str, start: int | None = None, stop: int = 0, limit: int | None = None, *, needs_body: bool = True
    ) -> _Response:
        """Send one request.

        Parameters
        ----------
        limit : bytes; of a longer body little more than that is read
        needs_body : read the body; False closes the connection of a server that begins to send the whole file

        Raises
        ------
        FileNotFoundError : status 404 or 410
        aiohttp.ClientError : other statuses of errors, no connection
        """
        url = quote(self._path(key), safe=_URL_CHARACTERS)
        options = dict(self._fs.kwargs)
        headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
        if start is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"

        async def request() -> _Response:
            session = await self._fs.set_session()
            async with session.get(self._fs.encode_url(url), headers=headers, **options) as answer:
                found = _Response(answer.status, answer.headers, str(answer.url), b"")
                if answer.status in {404, 410}:
                    raise FileNotFoundError(key)
                if answer.status != 416:  # the file ends before the range
                    answer.raise_for_status()
                if start is not None and answer.status == 200:
                    return found  # the caller decides whether to read all of it
                if not needs_body or answer.status == 416:
                    return found
                body = bytearray()
                async for chunk in answer.content.iter_chunked(2**20):
                    body += chunk
                    if limit is not None and len(body) > limit:
                        break
                return replace(found, body=bytes(body))

        return run_coroutine(self._fs, request)

    def _without_ranges(self, key: str) -> str:
        return (
            f"{self._shown(key)} has more than {_LARGEST_WHOLE_BYTES // 2**20} MiB and the server sends no parts of"
            " files (it ignores Range); download the model and name its folder"
        )

    def _shown(self, key: str) -> str:
        return self._path(key).partition("?")[0].rpartition("@")[2]

    def _path(self, key: str) -> str:
        return join_address(self._root, quote(key, safe="/")) if key else self._root

    def _make_parent(self, path: str) -> None:
        raise StoreError("web servers are read only; choose a directory or an object store such as s3://bucket/prefix")


def _stated_size(response: _Response) -> int | None:
    """Return the size of the whole file that a response states, None if it does not."""
    if response.status in {206, 416}:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdecimal() else (0 if response.status == 416 else None)
    if response.body:
        return len(response.body)
    if response.headers.get("Content-Encoding", "identity") not in {"", "identity"}:
        return None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None
