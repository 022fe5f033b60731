"""A small Hub on this machine that serves data sets: enough of its protocol for `datasets`."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class DatasetRepo:
    """Commits of one data set; the newest is `main`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode())
        self.main = digest.hexdigest()
        self.commits[self.main] = files
        return self.main


class DatasetHub(ThreadingHTTPServer):
    """The Hub. `requests` holds method, path and range of what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, DatasetRepo] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.broken: str | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]


def _entry(name: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DatasetHub

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, content: object, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if self.server.broken and self.server.broken in path:
            self._answer(400, {"error": "injected"})  # what clients do not try again
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(.*))?", path):
            self._api(match[1], match[2] or "", body)
        else:
            self._answer(404, {"error": "no route"})

    do_GET = do_POST = do_HEAD = _handle  # noqa: N815 - the names that http.server calls

    def _files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.server.repos.get(repo_id)
        commit = repo.main if repo is not None and revision == "main" else revision
        if repo is None:
            self._answer(404, {"error": "none"}, X_Error_Code="RepoNotFound")
        elif commit not in repo.commits:
            self._answer(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
        else:
            return commit, repo.commits[commit]
        return None

    def _api(self, repo_id: str, rest: str, body: bytes) -> None:
        action, _, rest = rest.partition("/")
        revision, _, folder = (rest or "main").partition("/")
        found = self._files(repo_id, revision)
        if found is None:
            return
        commit, files = found
        if action in ("", "revision"):
            siblings = [{"rfilename": name} for name in sorted(files)]
            card = {"id": repo_id, "sha": commit, "private": False, "siblings": siblings}
            self._answer(200, card | {"tags": [], "downloads": 0, "gated": False})
        elif action == "tree":
            self._tree(files, folder)
        elif action == "paths-info":
            wanted = json.loads(body)["paths"]
            self._answer(200, [_entry(name, files[name]) for name in wanted if name in files])
        else:
            self._answer(404, {"error": "no route"})

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        above = f"{folder}/" if folder else ""
        deep = "recursive=true" in urlsplit(self.path).query.lower()
        entries: dict[str, dict[str, object]] = {}
        for name, content in sorted(files.items()):
            if not name.startswith(above):
                continue
            below, _, deeper = name.removeprefix(above).partition("/")
            if deeper:
                path = above + below
                entries[path] = {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            if deep or not deeper:
                entries[name] = _entry(name, content)
        if entries:
            self._answer(200, list(entries.values()))
        else:
            self._answer(404, {"error": "none"}, X_Error_Code="EntryNotFound")

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        found = self._files(repo_id, revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            self._answer(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        content = files[name]
        headers = {
            "X_Repo_Commit": commit,
            "ETag": f'"{_entry(name, content)["oid"]}"',
            "Accept_Ranges": "bytes",
        }
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            self._answer(200, content, **headers)
            return
        start, stop = int(span[1]), int(span[2] or len(content) - 1) + 1
        stop = min(stop, len(content))
        headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._answer(206, content[start:stop], **headers)
