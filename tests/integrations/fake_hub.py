"""A model hub on loopback, small but real: what `huggingface_hub` calls, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """Commits by their sha, each a whole tree, and branches and tags by name."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        """Add files on top of a branch; returns the commit."""
        tree = {**self.commits.get(self.names.get(branch, ""), {}), **files}
        digest = hashlib.sha1(repr((len(self.commits), sorted(tree.items()))).encode()).hexdigest()
        self.commits[digest], self.names[branch] = tree, digest
        self.messages.append(message)
        return digest

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit names."""
        return self.names.get(revision, revision if revision in self.commits else None)


@dataclass
class FakeHub:
    """Repositories, and the requests that came for them."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    drops: str = ""
    """Requests with these words break off in the middle; empty for none."""
    fails: str = ""
    """Requests with these words are answered with 500."""
    url: str = ""

    def repository(self, name: str) -> Repository:
        """A repository, made when there is none."""
        return self.repositories.setdefault(name, Repository())


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that serves inside the `with` block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Reply:
    """What the hub answers; a HEAD leaves the body out."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    """Carries requests to the hub and its replies back; bodies are JSON but for files."""

    protocol_version = "HTTP/1.1"
    hub: ClassVar[FakeHub]

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def parse_request(self) -> bool:
        """Let a request fail before its method sees it."""
        whole, hub = super().parse_request(), self.hub
        asked = f"{self.command} {self.path}"
        if whole and hub.drops and hub.drops in asked:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        elif whole and hub.fails and hub.fails in asked:
            self._answer(_refusal(500, None, "the hub is unwell"))
        else:
            return whole
        self.close_connection = True
        return False

    def do_HEAD(self) -> None:
        self._answer(_file(self.hub, self.path, self._owner) if self._asks_file else _json({}))

    def do_GET(self) -> None:
        if self._asks_file:
            self._answer(_file(self.hub, self.path, self._owner))
        elif self.path.startswith("/api/whoami"):
            self._answer(_json({"name": "owner", "type": "user"}))
        else:
            self._answer(_NOTHING)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(_posted(self.hub, self.path, body) if self._owner else _STRANGER)

    @property
    def _owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    @property
    def _asks_file(self) -> bool:
        return "/resolve/" in self.path

    def _answer(self, reply: Reply) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else reply.body)


def _posted(hub: FakeHub, path: str, body: bytes) -> Reply:
    if path == "/api/repos/create":
        return _create(hub, json.loads(body))
    if "/preupload/" in path:
        files = [file["path"] for file in json.loads(body)["files"]]
        plain = {"uploadMode": "regular", "shouldIgnore": False}
        return _json({"files": [{"path": file, **plain} for file in files]})
    return _commit(hub, path, body) if "/commit/" in path else _NOTHING


def _create(hub: FakeHub, wanted: dict[str, Any]) -> Reply:
    name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
    if wanted.get("organization", "owner") != "owner":
        return _refusal(403, None, "You have no rights to create a repository there")
    if name in hub.repositories:
        return _json({"url": f"{hub.url}/{name}"}, status=409)
    repository = hub.repository(name)
    repository.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    repository.commit({".gitattributes": b""})
    return _json({"url": f"{hub.url}/{name}", "name": name})


def _commit(hub: FakeHub, path: str, body: bytes) -> Reply:
    found = re.match(r"/api/models/(.+?)/commit/([^?]+)(.*)", path)
    assert found is not None
    name, branch, query = found.groups()
    if name not in hub.repositories:
        return _refusal(404, "RepoNotFound", "Repository not found")
    lines = [json.loads(line) for line in body.splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    opens = "create_pr=1" in query
    summary = next(line for line in lines if line["key"] == "header")["value"]["summary"]
    sha = hub.repository(name).commit(files, "refs/pr/1" if opens else branch, summary)
    answer = {"commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}"}
    return _json(answer | ({"pullRequestUrl": f"{hub.url}/{name}/discussions/1"} if opens else {}))


def _file(hub: FakeHub, path: str, owner: bool) -> Reply:
    found = re.match(r"/(.+?)/resolve/([^/]+)/(.+)", path)
    assert found is not None
    name, revision, file = map(unquote, found.groups())
    repository = hub.repositories.get(name)
    if repository is None or (repository.private and not owner):
        return _refusal(401, "RepoNotFound", "Repository not found")
    sha = repository.find(revision)
    if sha is None:
        return _refusal(404, "RevisionNotFound", "Invalid rev id")
    content = repository.commits[sha].get(file)
    if content is None:
        return _refusal(404, "EntryNotFound", "Entry not found", sha)
    etag = f'"{hashlib.sha1(content).hexdigest()}"'
    return Reply(200, content, {"X-Repo-Commit": sha, "ETag": etag})


def _json(content: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(content).encode())


def _refusal(status: int, code: str | None, text: str, sha: str | None = None) -> Reply:
    named = {"X-Repo-Commit": sha, "X-Error-Code": code, "X-Error-Message": text}
    headers = {name: value for name, value in named.items() if value is not None}
    return Reply(status, json.dumps({"error": text}).encode(), headers)


_NOTHING = _refusal(404, "EntryNotFound", "there is nothing here")
_STRANGER = _refusal(401, None, "Invalid username or password.")
