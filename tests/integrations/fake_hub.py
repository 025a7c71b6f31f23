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
from typing import Any
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
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request; bodies are JSON but for files."""

        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

        def parse_request(self) -> bool:
            """Let a request fail before its method sees it."""
            whole = super().parse_request()
            asked = f"{self.command} {self.path}"
            if whole and hub.drops and hub.drops in asked:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                self.close_connection = True
                return False
            if whole and hub.fails and hub.fails in asked:
                self._refuse(500, None, "the hub is unwell")
                self.close_connection = True
                return False
            return whole

        def do_HEAD(self) -> None:
            hub.requests.append(f"HEAD {self.path}")
            self._file(with_body=False) if "/resolve/" in self.path else self._json({})

        def do_GET(self) -> None:
            hub.requests.append(f"GET {self.path}")
            if "/resolve/" in self.path:
                self._file(with_body=True)
            elif self.path.startswith("/api/whoami"):
                self._json({"name": "owner", "type": "user"})
            else:
                self._refuse(404, "EntryNotFound", "there is nothing here")

        def do_POST(self) -> None:
            hub.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._refuse(401, None, "Invalid username or password.")
            elif self.path == "/api/repos/create":
                self._create(json.loads(body))
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
                self._json({"files": modes})
            elif "/commit/" in self.path:
                self._commit(body)
            else:
                self._refuse(404, "EntryNotFound", "there is nothing here")

        def _create(self, wanted: dict[str, Any]) -> None:
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            if wanted.get("organization", "owner") != "owner":
                self._refuse(403, None, "You have no rights to create a repository there")
                return
            if name in hub.repositories:
                self._json({"url": f"{hub.url}/{name}"}, status=409)
                return
            repository = hub.repository(name)
            repository.private = wanted.get("visibility") == "private" or bool(
                wanted.get("private")
            )
            repository.commit({".gitattributes": b""})
            self._json({"url": f"{hub.url}/{name}", "name": name})

        def _commit(self, body: bytes) -> None:
            found = re.match(r"/api/models/(.+?)/commit/([^?]+)(.*)", self.path)
            assert found is not None
            name, branch, query = found.groups()
            if name not in hub.repositories:
                self._refuse(404, "RepoNotFound", "Repository not found")
                return
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            opens = "create_pr=1" in query
            branch = "refs/pr/1" if opens else branch
            summary = next(line for line in lines if line["key"] == "header")["value"]["summary"]
            sha = hub.repository(name).commit(files, branch, summary)
            answer = {"commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}"}
            if opens:
                answer["pullRequestUrl"] = f"{hub.url}/{name}/discussions/1"
            self._json(answer)

        def _file(self, *, with_body: bool) -> None:
            found = re.match(r"/(.+?)/resolve/([^/]+)/(.+)", self.path)
            assert found is not None
            name, revision, path = map(unquote, found.groups())
            repository = hub.repositories.get(name)
            owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if repository is None or (repository.private and not owner):
                self._refuse(401, "RepoNotFound", "Repository not found")
                return
            sha = repository.find(revision)
            if sha is None:
                self._refuse(404, "RevisionNotFound", "Invalid rev id")
                return
            content = repository.commits[sha].get(path)
            if content is None:
                self._refuse(404, "EntryNotFound", "Entry not found", sha)
                return
            self._send(200, content if with_body else b"", len(content), sha, _etag(content))

        def _json(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self._send(status, b"" if self.command == "HEAD" else body, len(body))

        def _refuse(self, status: int, code: str | None, text: str, sha: str | None = None) -> None:
            body = json.dumps({"error": text}).encode()
            shown = b"" if self.command == "HEAD" else body
            self._send(status, shown, len(body), sha, code=code, text=text)

        def _send(
            self,
            status: int,
            body: bytes,
            length: int,
            sha: str | None = None,
            etag: str | None = None,
            **error: str | None,
        ) -> None:
            self.send_response(status)
            named = {
                "X-Repo-Commit": sha,
                "ETag": etag,
                "X-Error-Code": error.get("code"),
                "X-Error-Message": error.get("text"),
            }
            for name, value in named.items():
                if value is not None:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha1(content).hexdigest()}"'
