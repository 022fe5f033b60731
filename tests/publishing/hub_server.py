"""A small Hub on this machine: enough of its protocol to create, upload, commit, list, download."""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from .card_specification import validate_card

TOKEN = "hf" + "_" + "LocalTestToken" + "0" * 10  # put together, so that no scanner objects
LFS_SUFFIXES = (".safetensors", ".png", ".bin")


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        digest = hashlib.sha1(repr((branch, message, sorted(files), len(self.commits))).encode())
        oid = digest.hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(Exception):  # noqa: N818 - it is not an error but what ends every request
    """Ends the handling of a request."""

    def __init__(self, status: int, content: object = None, **headers: str) -> None:
        self.status, self.content, self.headers = status, content, headers


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag_of(name: str, content: bytes) -> str:
    if name.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return git_blob_id(content)


class HubServer(ThreadingHTTPServer):
    """The Hub. `requests` holds what was sent.

    `fail_from` makes it fail at a request and after; `cut_from` hangs up instead, in the middle of
    what the client sends.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.fail_from: int | None = None
        self.fail_status = 500
        self.cut_from: int | None = None
        self.lose_answer_to: str | None = None
        self.before_commit: Callable[[], None] | None = None
        self.num_connections = 0
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return repo.commits[repo.branches[branch]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        with self.server.lock:
            self.server.num_connections += 1
            is_cut = self.server.cut_from is not None
            is_cut = is_cut and self.server.num_connections >= self.server.cut_from
        if is_cut:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, dict(self.headers), body)
        with self.server.lock:
            self.server.requests.append(request)
            number = len(self.server.requests)
            fail_from = self.server.fail_from
            try:
                if fail_from is not None and number >= fail_from:
                    raise Answer(self.server.fail_status, {"error": "injected"})
                self.route(request)
                raise Answer(404, {"error": f"no route for {self.command} {self.path}"})
            except Answer as answer:
                found = answer
        lost = self.server.lose_answer_to
        if lost and lost in self.path:
            self.close_connection = True
            return
        self.answer(found)

    # The names that http.server calls.
    do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815

    def answer(self, answer: Answer) -> None:
        content = answer.content
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in answer.headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self, request: Request) -> None:
        path = unquote(urlsplit(request.path).path)
        query = parse_qs(urlsplit(request.path).query)
        if path == "/api/validate-yaml":
            found = validate_card(json.loads(request.body)["content"])
            raise Answer(
                400 if found.errors else 200,
                {
                    name: [{"message": message} for message in messages]
                    for name, messages in vars(found).items()
                },
            )
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            assert hashlib.sha256(request.body).hexdigest() == match[1]
            self.server.lfs[match[1]] = request.body
            raise Answer(200, {})
        if path == "/api/repos/create":
            self.create(json.loads(request.body))
        if match := re.fullmatch(r"/([^/]+/[^/]+?)\.git/info/lfs/objects/batch", path):
            self.find_repo(match[1], write=True)
            self.lfs_batch(json.loads(request.body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.download(*match.groups())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            self.route_model(request, match[1], match[2] or "", query)

    def route_model(self, request: Request, repo_id: str, rest: str, query: object) -> None:
        if request.method == "GET" and not rest.startswith("/tree"):
            self.info(repo_id, rest.removeprefix("/revision/") or "main")
        if rest.startswith("/tree"):
            self.find_repo(repo_id)
            raise Answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
        repo = self.find_repo(repo_id, write=True)
        action, _, branch = rest.lstrip("/").partition("/")
        if action == "branch":
            if branch in repo.branches:
                raise Answer(409, {"error": "branch exists"})
            repo.branches[branch] = repo.branches["main"]
            raise Answer(200, {})
        if action == "preupload":
            self.preupload(repo, branch, json.loads(request.body))
        if action == "commit":
            self.commit(repo_id, repo, branch, request.body)

    def find_repo(self, repo_id: str, *, write: bool = False) -> Repo:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repo = self.server.repos.get(repo_id)
        if write and not known:
            raise Answer(401, {"error": "log in"}, X_Error_Message="Invalid credentials")
        if repo is None or (repo.private and not known):
            raise Answer(404 if known else 401, {"error": "none"}, X_Error_Code="RepoNotFound")
        return repo

    def create(self, order: dict[str, object]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Answer(401, {"error": "log in"}, X_Error_Message="Invalid credentials")
        repo_id = f"{order['organization'] or 'me'}/{order['name']}"
        url = {"url": f"{self.server.endpoint}/{repo_id}"}
        if repo_id in self.server.repos:
            raise Answer(409, {"error": "You already created this model repo", **url})
        private = order.get("visibility") == "private" or order.get("private") is True
        repo = self.server.repos[repo_id] = Repo(private=private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        raise Answer(200, url)

    def info(self, repo_id: str, revision: str) -> None:
        repo = self.find_repo(repo_id)
        oid = repo.resolve(revision)
        if oid is None:
            raise Answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        siblings = []
        for name, content in sorted(repo.commits[oid].items()):
            sibling: dict[str, object] = {"rfilename": name, "size": len(content)}
            sibling["blobId"] = git_blob_id(content)
            if name.endswith(LFS_SUFFIXES):
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        content = {"id": repo_id, "modelId": repo_id, "sha": oid, "private": repo.private}
        raise Answer(200, {**content, "tags": [], "downloads": 0, "siblings": siblings})

    def preupload(self, repo: Repo, branch: str, order: dict[str, list[dict[str, str]]]) -> None:
        there = repo.commits[repo.branches[branch]]
        raise Answer(
            200,
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                        "oid": etag_of(file["path"], there[file["path"]])
                        if file["path"] in there
                        else None,
                    }
                    for file in order["files"]
                ]
            },
        )

    def lfs_batch(self, order: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for wanted in order["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.lfs:
                answer["actions"] = {
                    "upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"}
                }
            objects.append(answer)
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, repo_id: str, repo: Repo, branch: str, body: bytes) -> None:
        if self.server.before_commit:
            self.server.before_commit()
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            raise Answer(412, {"error": "the branch has moved"})
        files = dict(repo.commits[repo.branches[branch]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Answer(400, {"error": line["key"]})
        oid = repo.commit(branch, files, header["summary"])
        url = f"{self.server.endpoint}/{repo_id}/commit/{oid}"
        raise Answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def download(self, repo_id: str, revision: str, name: str) -> None:
        repo = self.find_repo(repo_id)
        oid = repo.resolve(revision)
        if oid is None:
            raise Answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        if name not in repo.commits[oid]:
            raise Answer(404, {"error": "no file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        content = repo.commits[oid][name]
        raise Answer(200, content, X_Repo_Commit=oid, ETag=f'"{etag_of(name, content)}"')
