"""A small Hugging Face Hub on localhost: the routes that huggingface_hub calls to read and publish models, answered as the real one does."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_somebody_let_in"
STRANGER = "hf_of_a_stranger"
READER = "hf_that_may_only_read"
#: token -> (name, role); TOKEN may write to what begins with owner/
ACCOUNTS = {TOKEN: ("owner", "write"), STRANGER: ("stranger", "write"), READER: ("owner", "read")}
#: what the real Hub keeps as large files, by their contents
LARGE = (".safetensors", ".png", ".onnx", ".pt2")
LICENCES = {"mit", "apache-2.0", "cc-by-nc-4.0", "other"}


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
    uploaded: dict[str, bytes] = field(default_factory=dict)  # large files by their sha256; of no repository before a commit names them
    before: Callable[[str], None] = lambda request: None  # called with "METHOD path" before a request is answered

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


def front_matter(card: str) -> dict | None:
    """The YAML between the dashes a card begins with; None where it is no table."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    content = yaml.safe_load(found[1]) if found else None
    return content if isinstance(content, dict) else None


class Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.log.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.before(self.hub.log[-1])
        path = urlsplit(self.path).path
        for pattern, answer in self.CHANGES if self.command in ("POST", "PUT") else self.ROUTES:
            if match := re.fullmatch(pattern, path):
                answer(self, **{name: value and unquote(value) for name, value in match.groupdict().items()})
                return
        self.fail(404, message="no such route")

    do_HEAD = do_POST = do_PUT = do_GET

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
        if token not in ("", *ACCOUNTS):
            self.fail(401, message="Invalid credentials in Authorization header")
        elif repo is None or (repo.private and token not in (TOKEN, READER)):
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
        if card := front_matter(found.commits[commit].get("README.md", b"").decode()):
            told["cardData"] = card
        self.answer(told)

    def answer(self, content: object, status: int = 200) -> None:
        self.reply(status, json.dumps(content).encode(), Content_Type="application/json")

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

    def whoami(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ACCOUNTS:
            self.fail(401, message="Invalid user token")
            return
        name, role = ACCOUNTS[token]
        self.answer({"type": "user", "name": name, "orgs": [], "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}})

    def may_write(self, repo: str) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ACCOUNTS:
            self.fail(401, message="Invalid credentials in Authorization header")
        elif token != TOKEN or not repo.startswith("owner/"):
            self.fail(403, message=f"You don't have the rights to write to {repo}")
        else:
            return True
        return False

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
        if not self.may_write(repo):
            return
        if repo in self.hub.repos:
            self.fail(409, message="You already created this model repo")
            return
        self.hub.repos[repo] = Repo.of(
            {".gitattributes": b"*.safetensors filter=lfs"}, private=bool(wanted.get("private")) or wanted.get("visibility") == "private"
        )
        self.answer({"url": f"{self.hub.endpoint}/{repo}"})

    def validate(self) -> None:
        card = front_matter(json.loads(self.body)["content"])
        wrong = card is None or card.get("license", "mit") not in LICENCES
        self.answer(
            {"errors": [{"message": '"license" must be one of the known ones'}], "warnings": []} if wrong else {"errors": [], "warnings": []},
            400 if wrong else 200,
        )

    def preupload(self, repo: str, revision: str) -> None:
        if self.may_write(repo):
            files = [f["path"] for f in json.loads(self.body)["files"]]
            modes = {f: "lfs" if f.endswith(LARGE) else "regular" for f in files}
            self.answer({"files": [{"path": f, "uploadMode": mode, "shouldIgnore": False, "oid": None} for f, mode in modes.items()]})

    def batch(self, repo: str) -> None:
        if self.may_write(repo):
            objects = json.loads(self.body)["objects"]
            place = {o["oid"]: {"upload": {"href": f"{self.hub.cdn}/store/{o['oid']}", "header": {}}} for o in objects}
            self.answer({"transfer": "basic", "objects": [{**o, "actions": place[o["oid"]]} for o in objects]})

    def store(self, oid: str) -> None:
        right = hashlib.sha256(self.body).hexdigest() == oid
        if right:
            self.hub.uploaded[oid] = self.body
        self.reply(200 if right else 400)

    def commit(self, repo: str, revision: str) -> None:
        if not self.may_write(repo):
            return
        found, lines = self.hub.repos[repo], [json.loads(line) for line in self.body.splitlines()]
        parent = found.refs[revision]
        files = dict(found.commits[parent])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", parent) != parent:
                self.fail(412, message="A commit has happened since. Please refresh and try again.")
                return
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(parent.encode() + self.body).hexdigest()
        found.commits[oid] = files
        found.refs[revision] = oid
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}"})

    CHANGES: ClassVar = [
        (r"/api/repos/create", create),
        (r"/api/validate-yaml", validate),
        (r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", preupload),
        (r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", commit),
        (r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
        (r"/cdn/store/(?P<oid>[0-9a-f]+)", store),
    ]
    ROUTES: ClassVar = [
        (r"/api/whoami-v2", whoami),
        (r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?", info),
        (r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
        (r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<commit>[^/]+)/(?P<path>.+)", content),
    ]
