"""A Hub on loopback: the part of its HTTP API that huggingface_hub uses to create, upload to and read repositories.

Real sockets and the real client; only storage is a folder. Uploads go by Git LFS (the client speaks xet natively, so
set HF_HUB_DISABLE_XET=1). `HubServer.cut_after(n)` breaks the connection in the middle of the n-th large upload.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = r"(?:(?P<kind>datasets|models|spaces)/)?(?P<repo>[\w.-]+/[\w.-]+)"
API = r"/api/(?P<kind>datasets|models|spaces)/(?P<repo>[\w.-]+/[\w.-]+)"


class HubServer(ThreadingHTTPServer):
    """The server and what it holds.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        objects: contents of large files by SHA-256.
        repos: {"datasets/owner/name": [commit, ...]}, each commit {"oid", "title", "files": {path: sha256}}.
        uploads: SHA-256 of each large file that was received whole, in order.
    """

    daemon_threads = True

    def __init__(self, storage: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = storage
        self.objects.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, list[dict]] = {}
        self.private: set[str] = set()
        self.uploads: list[str] = []
        self._cut: int | None = None
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def cut_after(self, uploads: int | None) -> None:
        """Break the connection in the middle of every large upload after the first `uploads`; None: no more."""
        self._cut = uploads

    def broken(self) -> bool:
        """Whether the upload that begins now is to be cut."""
        return self._cut is not None and len(self.uploads) >= self._cut

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of a repository's newest commit, e.g. of "datasets/owner/name"."""
        head = self.repos[repo][-1]["files"]
        return {path: (self.objects / oid).read_bytes() for path, oid in head.items()}


@contextmanager
def serve(storage: Path):
    """A running server; stopped on exit."""
    server = HubServer(storage)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        path, query = self._path()
        if path == "/api/whoami-v2":
            return self._json({"name": "owner", "type": "user", "orgs": [], "auth": {}})
        if match := re.fullmatch(rf"{API}(?:/revision/(?P<rev>[^/]+))?", path):
            commit = self._commit(match)
            if commit is None:
                return self._missing("RepoNotFound")
            files = [{"rfilename": name, "blobId": oid[:40]} for name, oid in commit["files"].items()]
            repo = match["repo"]
            return self._json(
                {
                    "id": repo, "sha": commit["oid"], "siblings": files, "tags": [], "downloads": 0, "likes": 0,
                    "private": f"{match['kind']}/{repo}" in self.server.private, "gated": False, "disabled": False,
                    "author": repo.split("/")[0], "createdAt": "2026-01-01T00:00:00.000Z",
                    "lastModified": "2026-01-01T00:00:00.000Z",
                }
            )  # fmt: skip
        if match := re.fullmatch(rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?", path):
            commit = self._commit(match)
            if commit is None:
                return self._missing("RepoNotFound")
            return self._json(self._entries(commit, match["path"] or "", "recursive=" in query))
        if match := re.fullmatch(rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", path):
            return self._file(match)
        return self._missing("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, _ = self._path()
        if path == "/api/repos/create":
            asked = json.loads(self._body())
            owner = asked.get("organization") or "owner"
            repo = f"{asked.get('type') or 'model'}s/{owner}/{asked['name']}"
            url = f"{self.server.endpoint}/{repo.removeprefix('models/')}"
            if repo in self.server.repos:
                return self._json({"error": "You already created this repo", "url": url}, 409)
            self.server.repos[repo] = [{"oid": sha1(repo.encode()).hexdigest(), "title": "initial", "files": {}}]
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(repo)
            return self._json({"url": url, "id": f"{owner}/{asked['name']}"})
        if path == "/api/validate-yaml":
            self._body()
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(rf"{API}/preupload/(?P<rev>[^/]+)", path):
            files = json.loads(self._body())["files"]
            commit = self._commit(match)
            if commit is None:
                return self._missing("RepoNotFound")
            large = (".parquet", ".safetensors", ".bin")
            return self._json(
                {
                    "files": [
                        {
                            "path": file["path"], "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                            "shouldIgnore": False, "oid": commit["files"].get(file["path"]),
                        }
                        for file in files
                    ]
                }
            )  # fmt: skip
        if re.fullmatch(rf"/{REPO}\.git/info/lfs/objects/batch", path):
            return self._lfs_batch(json.loads(self._body()))
        if path.startswith("/lfs/verify/"):
            asked = json.loads(self._body())
            return self._json({}, 200 if (self.server.objects / asked["oid"]).exists() else 404)
        if match := re.fullmatch(rf"{API}/commit/(?P<rev>[^/]+)", path):
            return self._make_commit(match)
        if match := re.fullmatch(rf"{API}/paths-info/(?P<rev>[^/]+)", path):
            asked = json.loads(self._body())
            commit = self._commit(match)
            entries = self._entries(commit, "", True) if commit else []
            return self._json([entry for entry in entries if entry["path"] in asked["paths"]])
        return self._missing("EntryNotFound")

    def do_PUT(self) -> None:
        """A large file; cut in the middle where the test asks for it."""
        path, _ = self._path()
        oid = path.rpartition("/")[2]
        length = int(self.headers["Content-Length"])
        if self.server.broken():
            self.rfile.read(length // 2)
            self.connection.close()
            self.close_connection = True
            return None
        content = self.rfile.read(length)
        if sha256(content).hexdigest() != oid:
            return self._json({"error": "content does not match its hash"}, 400)
        (self.server.objects / oid).write_bytes(content)
        self.server.uploads.append(oid)
        return self._json({})

    def _lfs_batch(self, asked: dict) -> None:
        objects = []
        for wanted in asked["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if not (self.server.objects / wanted["oid"]).exists():
                place = self.server.endpoint + "/lfs"
                entry["actions"] = {
                    "upload": {"href": f"{place}/{wanted['oid']}", "header": {}},
                    "verify": {"href": f"{place}/verify/{wanted['oid']}", "header": {}},
                }
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _make_commit(self, match: re.Match) -> None:
        commits = self.server.repos.get(f"{match['kind']}/{match['repo']}")
        lines = [json.loads(line) for line in self._body().split(b"\n") if line.strip()]
        if commits is None:
            return self._missing("RepoNotFound")
        files, title = dict(commits[-1]["files"]), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                content = base64.b64decode(value["content"])
                oid = sha256(content).hexdigest()
                (self.server.objects / oid).write_bytes(content)
                files[value["path"]] = oid
            elif line["key"] == "lfsFile":
                if not (self.server.objects / value["oid"]).exists():
                    return self._json({"error": f"this file was never uploaded: {value['path']}"}, 400)
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = sha1(json.dumps([len(commits), files]).encode()).hexdigest()
        commits.append({"oid": oid, "title": title, "files": files})
        repo = f"{match['kind']}/{match['repo']}".removeprefix("models/")
        return self._json(
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.server.endpoint}/{repo}/commit/{oid}",
                "hookOutput": "",
            }
        )

    def _file(self, match: re.Match) -> None:
        commit = self._commit(match)
        if commit is None:
            return self._missing("RepoNotFound")
        oid = commit["files"].get(match["path"])
        if oid is None:
            return self._missing("EntryNotFound")
        content = (self.server.objects / oid).read_bytes()
        status, part = 200, content
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": commit["oid"], "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            part, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return self._send(part, status, "application/octet-stream", headers)

    def _entries(self, commit: dict, below: str, recursive: bool) -> list[dict]:
        entries: dict[str, dict] = {}
        prefix = f"{below}/" if below else ""
        for path, oid in commit["files"].items():
            if not path.startswith(prefix):
                continue
            parents = path.removeprefix(prefix).split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                folder = prefix + "/".join(parents[:depth])
                if recursive or depth == 1:
                    entries[folder] = {"type": "directory", "path": folder, "oid": oid[:40], "size": 0}
            if recursive or not parents:
                size = (self.server.objects / oid).stat().st_size
                lfs = {"lfs": {"oid": oid, "size": size, "pointerSize": 130}} if path.endswith(".parquet") else {}
                entries[path] = {"type": "file", "path": path, "oid": oid[:40], "size": size, **lfs}
        return list(entries.values())

    def _commit(self, match: re.Match) -> dict | None:
        """The commit that a request names: main, or an oid."""
        commits = self.server.repos.get(f"{match['kind'] or 'models'}/{match['repo']}", [])
        revision = unquote(match.groupdict().get("rev") or "main")
        return next((c for c in reversed(commits) if revision in ("main", "refs/convert/parquet", c["oid"])), None)

    def _path(self) -> tuple[str, str]:
        parts = urlsplit(self.path)
        return unquote(parts.path), parts.query

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _missing(self, code: str) -> None:
        self._json({"error": code}, 404, headers={"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value, status: int = 200, kind: str = "application/json", headers: dict | None = None) -> None:
        self._send(json.dumps(value).encode(), status, kind, headers or {})

    def _send(self, content: bytes, status: int, kind: str, headers: dict) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
