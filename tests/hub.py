"""A stand-in for the Hugging Face Hub on 127.0.0.1: what its client asks for when it downloads models, and ways to fail.

Repositories are folders on disk. Set ``HF_ENDPOINT`` to `Hub.url`, in a process of its own: the client reads its
environment when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from huggingface_hub import metadata_load

# Opens every repository; a token that is valid, but has access to public repositories only. All others are invalid.
TOKEN, STRANGER = "hf_member", "hf_stranger"

_REPOSITORY = r"(?P<repository>[^/]+(?:/[^/]+)?)"
_MODEL_INFO = re.compile(rf"/api/models/{_REPOSITORY}(?:/revision/(?P<revision>[^/]+))?")
_RESOLVE = re.compile(rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repository:
    """Folders by commit, commits by branch, and who may see them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Path] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`, as often as `times` says, or always.

    An integer is the HTTP status that is answered. "stall" answers nothing until the hub is closed. The others concern
    only the contents of files: "drop" closes the connection at half of what was asked for, "cut" does so at half of
    the file wherever the request begins, and "short" serves half of the file as if it were all of it.
    """

    what: int | str
    path: str
    times: int | None = None


@dataclass(frozen=True)
class Answer:
    """One HTTP response; at most `limit` bytes of the body are sent before the connection closes."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    limit: int | None = None


class Hub:
    """The server; use it in a ``with`` block. `requests` holds the method and path of each request, in order."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening: from now on connections are refused."""
        if not self.closed.is_set():
            self.closed.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def add(self, name: str, folder: Path, branch: str = "main", private: bool = False, gated: bool = False) -> str:
        """Make `folder` the head of a repository's branch; returns the new commit."""
        repository = self.repositories.setdefault(name, Repository(private, gated))
        commit = hashlib.sha1(f"{name} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = folder
        repository.branches[branch] = commit
        return commit

    def fail(self, what: int | str, path: str, times: int | None = None) -> None:
        """Let requests fail; see `Fault`."""
        self.faults.append(Fault(what, path, times))

    def downloads(self) -> list[str]:
        """The files whose contents were requested, in order."""
        found = (_RESOLVE.fullmatch(path) for method, path in self.requests if method == "GET")
        return [unquote(match["file"]) for match in found if match]

    def answer(self, method: str, path: str, token: str, start: int) -> Answer:
        """What the Hub answers; `start` is where the requested range begins."""
        self.requests.append((method, path))
        fault = self._fault(method, path)
        if fault == "stall":
            self.closed.wait()
        if isinstance(fault, int):
            return Answer(fault, b"something went wrong")
        match = _MODEL_INFO.fullmatch(path) or _RESOLVE.fullmatch(path)
        if match is None:
            return _error(404, "", "Not found")
        if token not in ("", TOKEN, STRANGER):
            return _error(401, "", "Invalid credentials in Authorization header")
        name, file = match["repository"], match.groupdict().get("file")
        if name in self.renamed:
            return Answer(307, headers={"Location": path.replace(name, self.renamed[name], 1)})
        repository = self.repositories.get(name)
        if repository is None or (repository.private and token != TOKEN):
            # Without a token the Hub does not tell which names are taken.
            return _error(404, "RepoNotFound", "Repository not found") if token else _error(401, "RepoNotFound", "Log in")
        if file is not None and repository.gated and token != TOKEN:
            return _error(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        revision = unquote(match["revision"] or "main")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        folder = repository.commits[commit]
        if file is None:
            return _model_info(name, repository, commit, folder)
        return _contents(folder / unquote(file), commit, start, fault)

    def _fault(self, method: str, path: str) -> int | str | None:
        with self._lock:
            for fault in self.faults:
                contents = fault.what in ("drop", "cut", "short")
                if fault.path in path and fault.times != 0 and (method == "GET" or not contents):
                    fault.times = fault.times and fault.times - 1
                    return fault.what
        return None


def _error(status: int, code: str, message: str) -> Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, json.dumps({"error": message}).encode(), headers)


def _model_info(name: str, repository: Repository, commit: str, folder: Path) -> Answer:
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    info = {
        "_id": commit[:24],
        "id": name,
        "modelId": name,
        "sha": commit,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "cardData": (metadata_load(folder / "README.md") if "README.md" in files else None) or {},
        "siblings": [{"rfilename": file} for file in files],
    }
    return Answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})


def _contents(file: Path, commit: str, start: int, fault: int | str | None) -> Answer:
    if not file.is_file():
        answer = _error(404, "EntryNotFound", "Entry not found")
        return Answer(answer.status, answer.body, answer.headers | {"X-Repo-Commit": commit})
    data = file.read_bytes()
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    if fault == "short":
        data = data[: len(data) // 2]
    rest = data[start:]
    limit = {"drop": len(rest) // 2, "cut": max(0, len(data) // 2 - start)}.get(str(fault))
    if start == 0:
        return Answer(200, rest, headers, limit)
    if start >= len(data):
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
    return Answer(206, rest, headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, limit)


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        path = urlsplit(self.path).path
        answer = self.server.hub.answer(self.command, path, token, int(start[1]) if start else 0)
        try:
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(answer.body[: answer.limit])
                self.close_connection |= answer.limit is not None
        except ConnectionError:  # the client did not wait
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815 - http.server calls it so

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        pass
