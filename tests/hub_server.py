"""A small Hugging Face Hub on localhost: the few routes that huggingface_hub calls to read models, answered as the real one does."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_somebody_let_in"
STRANGER = "hf_of_a_stranger"


@dataclass
class Repo:
    """``commits``: hash -> {path: content}; ``refs``: branch or tag -> hash."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    private: bool = False
    gated: bool = False
    status: int = 200  # of every answer, where it is an error
    content_status: int = 200  # the same for files alone

    @staticmethod
    def of(files: dict[str, bytes], **options) -> Repo:
        """A repository with one commit on main."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        return Repo({commit: files}, {"main": commit}, **options)


@dataclass
class Hub:
    """Serves ``repos`` ("owner/name" -> Repo) from entering to leaving it; ``log`` has each request as "METHOD path"."""

    repos: dict[str, Repo] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def __enter__(self) -> Hub:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.cdn = self.endpoint.replace("127.0.0.1", "localhost") + "/cdn"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for since the log was last cleared, in order."""
        return [line.rpartition("/")[2] for line in self.log if line.startswith(("GET /cdn/", "GET /")) and ("/resolve/" in line or "/cdn/" in line)]


class Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.log.append(f"{self.command} {self.path}")
        path = urlsplit(self.path).path
        for pattern, answer in self.ROUTES:
            if match := re.fullmatch(pattern, path):
                answer(self, **{name: value and unquote(value) for name, value in match.groupdict().items()})
                return
        self.fail(404, message="no such route")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str = "", message: str = "") -> None:
        headers = {k: v for k, v in (("X_Error_Code", code), ("X_Error_Message", message)) if v}
        self.reply(status, json.dumps({"error": message}).encode(), Content_Type="application/json", **headers)

    def admitted(self, repo_id: str, content: bool) -> Repo | None:
        """The repository, or None where the request was refused already. A gated one tells everybody what it holds."""
        token, repo = self.headers.get("Authorization", "").removeprefix("Bearer "), self.hub.repos.get(repo_id)
        if token not in ("", TOKEN, STRANGER):
            self.fail(401, message="Invalid credentials in Authorization header")
        elif repo is None or (repo.private and token != TOKEN):
            self.fail(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repo.status != 200:
            self.fail(repo.status, message="out of order")
        elif content and repo.content_status != 200:
            self.fail(repo.content_status, message="out of paper")
        elif repo.gated and content and token != TOKEN:
            self.fail(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted")
        else:
            return repo
        return None

    def info(self, repo: str, revision: str | None = None) -> None:
        if (found := self.admitted(repo, content=False)) is None:
            return
        commit = found.refs.get(revision or "main", revision)
        if commit not in found.commits:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [{"rfilename": path} for path in found.commits[commit]]
        told = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": found.private, "gated": found.gated, "tags": [], "siblings": siblings}
        self.reply(200, json.dumps(told).encode(), Content_Type="application/json")

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if (found := self.admitted(repo, content=True)) is None:
            return
        commit = found.refs.get(revision, revision)
        if commit not in found.commits:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif path not in found.commits[commit]:
            self.fail(404, "EntryNotFound", "Entry not found")
        elif path.endswith(".json"):
            content = found.commits[commit][path]
            self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)
        else:  # large files lie on another host
            content = found.commits[commit][path]
            sha = hashlib.sha256(content).hexdigest()
            linked = {"X_Linked_Etag": f'"{sha}"', "X_Linked_Size": str(len(content)), "X_Repo_Commit": commit}
            self.reply(302, Location=f"{self.hub.cdn}/{repo}/{commit}/{path}", **linked)

    def content(self, repo: str, commit: str, path: str) -> None:
        content = self.hub.repos[repo].commits[commit][path]
        if "Authorization" in self.headers:
            self.fail(400, message="a token sent to another host than the Hub")
            return
        self.reply(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    ROUTES: ClassVar = [
        (r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?", info),
        (r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
        (r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<commit>[^/]+)/(?P<path>.+)", content),
    ]
