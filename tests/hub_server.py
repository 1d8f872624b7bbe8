"""A stand-in for the Hugging Face hub: what huggingface_hub asks its API to push a model, over real HTTP.

Users are known by their tokens and write where a name begins with theirs. What is no text goes through LFS,
as on the hub; what was committed can be copied into a folder.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TEXT = (".json", ".jsonl", ".md", ".txt")
COMMIT = "c" * 40


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    "Of its commits."


class Refusal(Exception):
    """(status, the hub's words, code)."""


class Hub(ThreadingHTTPServer):
    def __init__(self, users: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.users = users
        "Token → user."
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        "sha256 → content, uploaded but not yet committed."
        self.full = False
        "No object can be stored."
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def snapshot(self, repository: str, folder: Path) -> Path:
        """What somebody gets who downloads it."""
        for name, content in self.repositories[repository].files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        try:
            status, answer, code = 200, self._route(path, body), ""
        except Refusal as refusal:
            status, words, code = refusal.args
            answer = {"error": words}
        content = json.dumps(answer).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status >= 400:
            self.send_header("X-Error-Message", answer["error"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _answer

    def _route(self, path: str, body: bytes) -> Any:
        if path.startswith("/objects/"):
            return self._store(path.removeprefix("/objects/"), body)
        user = self._user()
        if path == "/api/whoami-v2":
            return {"type": "user", "name": user, "orgs": []}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(user, **json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            name = path.removeprefix("/").removesuffix(".git/info/lfs/objects/batch")
            self._may_write(user, name)
            return {"transfer": "basic", "objects": [self._object(**o) for o in json.loads(body)["objects"]]}
        name, _, rest = path.removeprefix("/api/models/").partition("/")
        owned, _, verb = rest.partition("/")
        name = f"{name}/{owned}"
        if name not in self.server.repositories:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if self.command == "GET" and not verb:
            return {"id": name, "sha": COMMIT, "siblings": [], "tags": []}
        self._may_write(user, name)
        if verb == "preupload/main":
            return {"files": [self._mode(**file) for file in json.loads(body)["files"]]}
        if verb == "commit/main":
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        raise Refusal(404, f"no {self.command} {path}", "")

    def _user(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.server.users:
            raise Refusal(401, "Invalid credentials in Authorization header", "")
        return self.server.users[token]

    def _may_write(self, user: str, repository: str) -> None:
        if repository.partition("/")[0] != user:
            raise Refusal(
                403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request", ""
            )

    def _create(self, user: str, name: str, organization: str | None = None, **_: Any) -> dict[str, str]:
        owner = organization or user
        if owner != user:
            raise Refusal(
                403, f'You don\'t have the rights to create a model under the namespace "{owner}"', ""
            )
        repository = f"{owner}/{name}"
        self.server.repositories.setdefault(repository, Repository())
        return {"url": f"{self.server.endpoint}/{repository}", "name": repository}

    @staticmethod
    def _mode(path: str, size: int, **_: Any) -> dict[str, Any]:
        lfs = size > 10 and not path.endswith(TEXT)
        return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}

    def _object(self, oid: str, size: int) -> dict[str, Any]:
        href = f"{self.server.endpoint}/objects/{oid}"
        return {"oid": oid, "size": size, "actions": {"upload": {"href": href}}}

    def _store(self, oid: str, content: bytes) -> dict[str, str]:
        if self.server.full:
            raise Refusal(507, "no room left", "")
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "another content than was announced", "")
        self.server.objects[oid] = content
        return {}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> dict[str, str]:
        repository = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line
                repository.files[value["path"]] = self.server.objects[value["oid"]]
        return {"commitUrl": f"{self.server.endpoint}/{name}/commit/{COMMIT}", "commitOid": COMMIT}


@contextmanager
def serve(users: dict[str, str]) -> Iterator[Hub]:
    """A hub at `endpoint` while the block runs."""
    hub = Hub(users)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
