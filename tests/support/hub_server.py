"""Serves the part of the Hub's HTTP API that huggingface_hub uses to create, upload to and read repositories.

Real sockets and the real client; only storage is a folder. Accounts have tokens, repositories are public or private,
branches and commits are kept. Uploads go by Git LFS (the client speaks xet natively, so set HF_HUB_DISABLE_XET=1).
`HubServer.cut_after(n)` breaks the connection in the middle of every large upload after the next n.
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
LARGE = (".parquet", ".safetensors", ".bin")
"""Names of files that go by Git LFS."""


class HubServer(ThreadingHTTPServer):
    """The server and its repositories.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        accounts: account by token; an account writes to and sees the private repositories of its own name alone.
        objects: contents of all files by SHA-256.
        repos: {"datasets/owner/name": [commit, ...]}, of main, each commit {"oid", "title", "files": {path: sha256}}.
        branches: the same by (repository, branch), of the other branches.
        private: names of the private ones.
        sdks: of the Spaces, by name.
        uploads: SHA-256 of each large file that was received whole, in order.
        sent: bytes of files that were sent.
        lose_replies: whether commits are made but their answers lost.
    """

    daemon_threads = True

    def __init__(self, storage: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.accounts = {"hf_local": "owner"}
        self.objects = storage
        self.objects.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, list[dict]] = {}
        self.branches: dict[tuple[str, str], list[dict]] = {}
        self.private: set[str] = set()
        self.sdks: dict[str, str] = {}
        self.uploads: list[str] = []
        self.sent = 0
        self.lose_replies = False
        self._left: int | None = None
        self._counting = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def cut_after(self, uploads: int | None) -> None:
        """Break the connection in the middle of every large upload after the next `uploads`; None: of none."""
        self._left = uploads

    def broken(self) -> bool:
        """Return whether the upload that begins now is to be cut; those let through are counted as they begin."""
        with self._counting:
            if self._left is None:
                return False
            self._left -= 1
            return self._left < 0

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a branch's newest commit, e.g. of "datasets/owner/name"."""
        head = self.commits(repo, branch)[-1]["files"]
        return {path: (self.objects / oid).read_bytes() for path, oid in head.items()}

    def commits(self, repo: str, branch: str = "main") -> list[dict]:
        """Return the commits of a branch, oldest first; the list itself."""
        return self.repos[repo] if branch == "main" else self.branches[repo, branch]


@contextmanager
def serve(storage: Path):
    """Run a server in the context; yield it."""
    server = HubServer(storage)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
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
        if self._refuses_token():
            return None
        if path == "/api/whoami-v2":
            return self._json({"name": self._account(), "type": "user", "orgs": [], "auth": {}})
        if match := re.fullmatch(rf"{API}(?:/revision/(?P<rev>[^/]+))?", path):
            return self._info(match) if self._sees(match) else None
        if match := re.fullmatch(rf"{API}/refs", path):
            return self._refs(match) if self._sees(match) else None
        if match := re.fullmatch(rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?", path):
            return self._tree(match, "recursive=" in query.lower()) if self._sees(match) else None
        if match := re.fullmatch(rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", path):
            return self._file(match) if self._sees(match) else None
        return self._missing("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, _ = self._path()
        body = self._body()
        if self._refuses_token():
            return None
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(rf"{API}/preupload/(?P<rev>[^/]+)", path):
            return self._preupload(match, json.loads(body)["files"]) if self._writes(match) else None
        if match := re.fullmatch(rf"/{REPO}\.git/info/lfs/objects/batch", path):
            return self._lfs_batch(json.loads(body)) if self._writes(match) else None
        if path.startswith("/lfs/verify/"):
            return self._json({}, 200 if (self.server.objects / json.loads(body)["oid"]).exists() else 404)
        if match := re.fullmatch(rf"{API}/branch/(?P<rev>[^/]+)", path):
            return self._make_branch(match) if self._writes(match) else None
        if match := re.fullmatch(rf"{API}/commit/(?P<rev>[^/]+)", path):
            return self._make_commit(match, body) if self._writes(match) else None
        if match := re.fullmatch(rf"{API}/paths-info/(?P<rev>[^/]+)", path):
            return self._paths_info(match, json.loads(body)["paths"]) if self._sees(match) else None
        return self._missing("EntryNotFound")

    def do_PUT(self) -> None:
        """Receive a large file; cut it in the middle if the test asks for it."""
        path, _ = self._path()
        oid = path.rpartition("/")[2]
        length = int(self.headers["Content-Length"])
        if self.server.broken():
            self.rfile.read(length // 2)
            return self._hang_up()
        content = self.rfile.read(length)
        if sha256(content).hexdigest() != oid:
            return self._json({"error": "content does not match its hash"}, 400)
        (self.server.objects / oid).write_bytes(content)
        self.server.uploads.append(oid)
        return self._json({})

    # --- permissions -------------------------------------------------------------------------------------------------

    def _account(self) -> str | None:
        """Return the account of this request's token; None without one."""
        return self.server.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _refuses_token(self) -> bool:
        """Answer a request whose token belongs to no account."""
        if "Authorization" not in self.headers or self._account() is not None:
            return False
        message = "Invalid credentials in Authorization header"
        self._json({"error": message}, 401, headers={"X-Error-Message": message})
        return True

    def _sees(self, match: re.Match) -> bool:
        """Return whether this account sees the repository; send the refusal if it does not."""
        name, owner = self._name(match), match["repo"].split("/")[0]
        if name in self.server.repos and (name not in self.server.private or self._account() == owner):
            return True
        self._missing("RepoNotFound", 404 if self._account() else 401)
        return False

    def _writes(self, match: re.Match) -> bool:
        """Return whether this account may write to the repository; send the refusal if it may not."""
        if not self._sees(match):
            return False
        return self._owns(match["repo"].split("/")[0])

    def _owns(self, owner: str) -> bool:
        if self._account() == owner:
            return True
        message = f"You don't have the rights to write to the namespace {owner!r}"
        status = 403 if self._account() else 401
        self._json({"error": message}, status, headers={"X-Error-Message": message})
        return False

    # --- repositories ------------------------------------------------------------------------------------------------

    def _create(self, asked: dict) -> None:
        kind, owner = asked.get("type") or "model", asked.get("organization") or self._account() or "nobody"
        repo = f"{kind}s/{owner}/{asked['name']}"
        url = f"{self.server.endpoint}/{repo.removeprefix('models/')}"
        if not self._owns(owner):
            return None
        if repo in self.server.repos:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        if kind == "space" and "sdk" not in asked:
            return self._json({"error": "a Space needs an sdk"}, 400)
        self.server.repos[repo] = [{"oid": sha1(repo.encode()).hexdigest(), "title": "initial", "files": {}}]
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(repo)
        if kind == "space":
            self.server.sdks[repo] = asked["sdk"]
        return self._json({"url": url, "id": f"{owner}/{asked['name']}"})

    def _info(self, match: re.Match) -> None:
        commit = self._commit(match)
        if commit is None:
            return self._missing("RevisionNotFound")
        repo, name = match["repo"], self._name(match)
        known = {
            "id": repo, "sha": commit["oid"], "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path, "blobId": self._blob(oid)} for path, oid in commit["files"].items()],
            "private": name in self.server.private, "gated": False, "disabled": False,
            "author": repo.split("/")[0], "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip
        return self._json(known)

    def _refs(self, match: re.Match) -> None:
        name = self._name(match)
        branches = {"main": self.server.repos[name]}
        branches |= {branch: commits for (repo, branch), commits in self.server.branches.items() if repo == name}
        listed = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commits[-1]["oid"]}
            for branch, commits in branches.items()
        ]
        return self._json({"branches": listed, "converts": [], "tags": []})

    def _make_branch(self, match: re.Match) -> None:
        key = (self._name(match), unquote(match["rev"]))
        if key in self.server.branches or key[1] == "main":
            return self._json({"error": "the branch exists"}, 409)
        self.server.branches[key] = self.server.repos[key[0]][-1:]
        return self._json({})

    # --- uploads -----------------------------------------------------------------------------------------------------

    def _preupload(self, match: re.Match, files: list[dict]) -> None:
        commit = self._commit(match)
        if commit is None:
            return self._missing("RevisionNotFound")
        answer = []
        for file in files:
            large = file["path"].endswith(LARGE)
            there = commit["files"].get(file["path"])
            oid = there if large or there is None else self._blob(there)
            answer.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        return self._json({"files": answer})

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

    def _make_commit(self, match: re.Match, body: bytes) -> None:
        try:
            commits = self.server.commits(self._name(match), unquote(match["rev"]))
        except KeyError:
            return self._missing("RevisionNotFound")
        lines = [json.loads(line) for line in body.split(b"\n") if line.strip()]
        files, title = dict(commits[-1]["files"]), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", commits[-1]["oid"]) != commits[-1]["oid"]:
                    return self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
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
        place = [len(commits), self._name(match), match["rev"]]
        oid = sha1(json.dumps([place, files]).encode()).hexdigest()
        commits.append({"oid": oid, "title": title, "files": files})
        if self.server.lose_replies:
            return self._hang_up()
        url = f"{self.server.endpoint}/{self._name(match).removeprefix('models/')}/commit/{oid}"
        return self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # --- reading -----------------------------------------------------------------------------------------------------

    def _file(self, match: re.Match) -> None:
        commit = self._commit(match)
        if commit is None:
            return self._missing("RevisionNotFound")
        oid = commit["files"].get(unquote(match["path"]))
        if oid is None:
            return self._missing("EntryNotFound", headers={"X-Repo-Commit": commit["oid"]})
        content = (self.server.objects / oid).read_bytes()
        status, part = 200, content
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": commit["oid"], "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            part, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        if self.command == "GET":
            self.server.sent += len(part)
        return self._send(part, status, "application/octet-stream", headers)

    def _tree(self, match: re.Match, recursive: bool) -> None:
        commit = self._commit(match)
        if commit is None:
            return self._missing("RevisionNotFound")
        entries = self._entries(commit, unquote(match["path"] or ""), recursive)
        return self._json(entries) if entries or not match["path"] else self._missing("EntryNotFound")

    def _paths_info(self, match: re.Match, paths: list[str]) -> None:
        commit = self._commit(match)
        if commit is None:
            return self._missing("RevisionNotFound")
        return self._json([entry for entry in self._entries(commit, "", True) if entry["path"] in paths])

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
                lfs = {"lfs": {"oid": oid, "size": size, "pointerSize": 130}} if path.endswith(LARGE) else {}
                entries[path] = {"type": "file", "path": path, "oid": self._blob(oid), "size": size, **lfs}
        return list(entries.values())

    def _blob(self, oid: str) -> str:
        """Return the name that git gives to a content."""
        content = (self.server.objects / oid).read_bytes()
        return sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _name(self, match: re.Match) -> str:
        return f"{match['kind'] or 'models'}/{match['repo']}"

    def _commit(self, match: re.Match) -> dict | None:
        """Return the commit that a request names: a branch's newest, or the one of an oid."""
        name, revision = self._name(match), unquote(match.groupdict().get("rev") or "main")
        branches = {branch: commits for (repo, branch), commits in self.server.branches.items() if repo == name}
        branches |= dict.fromkeys(("main", "refs/convert/parquet"), self.server.repos[name])
        if revision in branches:
            return branches[revision][-1]
        return next((one for commits in branches.values() for one in commits if one["oid"] == revision), None)

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def _path(self) -> tuple[str, str]:
        parts = urlsplit(self.path)
        return parts.path, parts.query  # still quoted: a branch's name may hold a slash

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _missing(self, code: str, status: int = 404, headers: dict | None = None) -> None:
        self._json({"error": code}, status, headers={"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _json(self, value, status: int = 200, kind: str = "application/json", headers: dict | None = None) -> None:
        self._send(json.dumps(value).encode(), status, kind, headers or {})

    def _send(self, content: bytes, status: int, kind: str, headers: dict) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.connection.close()
        self.close_connection = True


@contextmanager
def connected(server: HubServer, home: Path):
    """Point this process's clients to the server, as its account "owner"; downloads lie in `home`."""
    import huggingface_hub.constants as constants
    import transformers.utils.hub as of_transformers
    from huggingface_hub.utils import close_session
    from pytest import MonkeyPatch

    with MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(
            of_transformers, "_hf_api", None, raising=False
        )  # made on first use, with the address of that time
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
        patch.setenv("HF_TOKEN", "hf_local")
        close_session()
        yield server
    close_session()
