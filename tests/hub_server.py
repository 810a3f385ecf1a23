"""A stand-in for the Hugging Face Hub: the endpoints that a push uses, for models, with large files by Git LFS.

`python hub_server.py PORT` serves until it is stopped. Tokens: "writer" belongs to the user "me" and the organization
"team"; "reader" can only read; others are refused. POST /test/state replaces settings of the test, GET returns what the
server holds:

* fail_after: number of uploads of content that succeed; the next ones get status 403
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"

repositories: dict[str, dict[str, Any]] = {}  # name -> {"private": bool, "commits": [{name: bytes or ("lfs", oid)}]}
blobs: dict[tuple[str, str], bytes] = {}  # (repository, oid) -> content
state: dict[str, Any] = {"fail_after": None, "uploads": [], "requests": []}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def head(repository: dict[str, Any]) -> str:
    text = json.dumps([sorted(map(str, commit.items())) for commit in repository["commits"]])
    return hashlib.sha1(text.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer(status, {"error": message}, headers)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        path, data = unquote(parts.path), self.body()
        state["requests"].append(f"{self.command} {path}")
        if path == "/test/state":
            if self.command == "POST":
                state.update(json.loads(data))
            return self.answer(200, self.seen())
        if path.startswith("/lfs/"):
            return self.receive(path.removeprefix("/lfs/"), data)
        if self.token not in ("writer", "reader"):
            return self.refuse(401, "Invalid username or password.")
        if path == "/api/whoami-v2":
            role = {"writer": "write", "reader": "read"}[self.token]
            auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
            return self.answer(200, {"name": "me", "orgs": [{"name": "team"}], "auth": auth})
        if path == "/api/validate-yaml":  # the Hub checks the metadata of a card before a commit
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        for marker, action in (
            (".git/info/lfs/objects/batch", self.batch),
            ("/preupload/", self.preupload),
            ("/commit/", self.commit),
            ("/tree/", self.tree),
            ("/resolve/", self.resolve),
            ("/revision/", self.info),
        ):
            if marker in path:
                name = path.partition(marker)[0].removeprefix("/api/models/").strip("/")
                if name not in repositories:
                    return self.refuse(404, "Repository not found", "RepoNotFound")
                return action(repositories[name], name, path.partition(marker)[2], data, parse_qs(parts.query))
        name = path.removeprefix("/api/models/")
        if name not in repositories:
            return self.refuse(404, "Repository not found", "RepoNotFound")
        return self.info(repositories[name], name, "", data, {})

    def info(self, repository: dict[str, Any], name: str, rest: str, data: bytes, query: Any) -> None:
        facts = {"id": name, "modelId": name, "sha": head(repository), "private": repository["private"]}
        self.answer(200, facts)

    do_GET = do_POST = do_PUT = do_HEAD = handle_request

    def seen(self) -> dict[str, Any]:
        def content(name: str, value: Any) -> str:
            data = blobs[name, value[1]] if isinstance(value, tuple) else value
            return hashlib.sha256(data).hexdigest()

        return {
            "uploads": state["uploads"],
            "requests": state["requests"],
            "repositories": {
                name: {
                    "private": one["private"],
                    "files": {file: content(name, value) for file, value in one["commits"][-1].items()},
                    "num_commits": len(one["commits"]),
                }
                for name, one in repositories.items()
            },
        }

    def create(self, wish: dict[str, Any]) -> None:
        owner = wish.get("organization") or "me"
        name = f"{owner}/{wish['name']}"
        if owner not in ("me", "team"):
            return self.refuse(403, f"You don't have the rights to create a model under the namespace {owner}")
        if name in repositories:
            return self.refuse(409, "You already created this model repo")
        private = wish.get("private") or wish.get("visibility") == "private"
        repositories[name] = {"private": bool(private), "commits": [{".gitattributes": ATTRIBUTES}]}
        return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})

    def preupload(self, repository: dict[str, Any], name: str, rest: str, data: bytes, query: Any) -> None:
        files = repository["commits"][-1]
        rows = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": self.oid(files[file["path"]]) if file["path"] in files else None,
            }
            for file in json.loads(data)["files"]
        ]
        self.answer(200, {"files": rows})

    def oid(self, value: Any) -> str:
        return value[1] if isinstance(value, tuple) else git_sha1(value)

    def batch(self, repository: dict[str, Any], name: str, rest: str, data: bytes, query: Any) -> None:
        rows: list[dict[str, Any]] = []
        for wish in json.loads(data)["objects"]:
            row = {"oid": wish["oid"], "size": wish["size"]}
            if (name, wish["oid"]) not in blobs:
                href = f"http://{self.headers['Host']}/lfs/{name}/{wish['oid']}"
                row["actions"] = {"upload": {"href": href, "header": {}}}
            rows.append(row)
        self.answer(200, {"transfer": "basic", "objects": rows})

    def receive(self, path: str, data: bytes) -> None:
        name, _, oid = path.rpartition("/")
        if state["fail_after"] is not None and len(state["uploads"]) >= state["fail_after"]:
            return self.refuse(403, "storage is away")
        if hashlib.sha256(data).hexdigest() != oid:
            return self.refuse(400, "content does not match its oid")
        blobs[name, oid] = data
        state["uploads"].append(oid)
        return self.answer(200)

    def commit(self, repository: dict[str, Any], name: str, rest: str, data: bytes, query: Any) -> None:
        if self.token != "writer":
            return self.refuse(403, "Forbidden: pass a token with write access")
        files = dict(repository["commits"][-1])
        for line in data.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header" and value.get("parentCommit") not in (None, head(repository)):
                return self.refuse(412, "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if (name, value["oid"]) not in blobs:
                    return self.refuse(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = ("lfs", value["oid"])
            elif key == "deletedFile":
                del files[value["path"]]
        repository["commits"].append(files)
        oid = head(repository)
        return self.answer(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{oid}", "commitOid": oid})

    def tree(self, repository: dict[str, Any], name: str, rest: str, data: bytes, query: Any) -> None:
        rows: list[dict[str, Any]] = []
        for path, value in sorted(repository["commits"][-1].items()):
            if isinstance(value, tuple):
                content = blobs[name, value[1]]
                large = {"oid": value[1], "size": len(content), "pointerSize": 130}
                rows.append({"type": "file", "path": path, "size": len(content), "oid": "0" * 40, "lfs": large})
            else:
                rows.append({"type": "file", "path": path, "size": len(value), "oid": git_sha1(value)})
        self.answer(200, rows)

    def resolve(self, repository: dict[str, Any], name: str, rest: str, data: bytes, query: Any) -> None:
        path = rest.partition("/")[2]
        value = repository["commits"][-1].get(path)
        if value is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        content = blobs[name, value[1]] if isinstance(value, tuple) else value
        headers = {"X-Repo-Commit": head(repository), "ETag": f'"{self.oid(value)}"'}
        return self.answer(200, content, headers)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
