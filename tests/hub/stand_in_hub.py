"""A small Hub on loopback: real HTTP, repositories in memory, faults to order.

It speaks the part of the Hub's protocol that `huggingface_hub`, `datasets`, `evaluate` and
`transformers` use to create, fill and read repositories. It checks tokens, parents of commits and
hashes of files, and takes any card: what stands in a card is for the tests to check.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
USERS = {WRITER: "org", READER: "guest"}
API = r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
FILES = r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"


@dataclass
class Commit:
    sha: str
    parent: str | None
    title: str
    files: dict[str, bytes]


@dataclass
class PullRequest:
    number: int
    title: str
    author: str

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.number}"


@dataclass
class Repository:
    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pull_requests: list[PullRequest] = field(default_factory=list)

    def commit(self, ref: str, title: str, files: dict[str, bytes]) -> Commit:
        parent = self.refs.get(ref)
        contents = {path: _etag(path, content) for path, content in files.items()}
        identity = json.dumps([self.kind, self.id, ref, parent, title, len(self.commits), contents])
        digest = hashlib.sha1(identity.encode(), usedforsecurity=False)
        commit = Commit(digest.hexdigest(), parent, title, files)
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
        return commit

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    @property
    def files(self) -> dict[str, bytes]:
        """What stands on the main branch."""
        return self.at("main").files


@dataclass
class Fault:
    """What happens to the next requests of this kind.

    `status` is an HTTP status, "cut" (the line drops before the request is read), "lost" (the
    request is carried out, the line drops before the answer), or what is called before a cut.
    In `message`, {request} stands for the address and the token of the request.
    """

    method: str
    path: str
    status: int | str | Callable[[], None]
    times: int
    message: str


class Refusal(Exception):
    def __init__(self, status: int, message: str, error_code: str | None = None):
        super().__init__(message)
        self.status, self.error_code = status, error_code


class StandInHub:
    """``with StandInHub() as hub:`` serves at ``hub.url`` until the block ends."""

    def __enter__(self) -> "StandInHub":
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, kind: str, id: str, files: dict[str, bytes], private: bool = False) -> Repository:
        repository = Repository(kind, id, private)
        repository.commit("main", "Initial commit", dict(files))
        self.repositories[kind, id] = repository
        return repository

    def fail(
        self,
        method: str,
        path: str,
        status: int | str | Callable,
        times: int = 1,
        message: str = "a fault to order",
    ) -> None:
        self.faults.append(Fault(method, path, status, times, message))

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.fullmatch(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _answer_request(self) -> None:
        address = urlsplit(self.path)
        path, self.query = unquote(address.path), parse_qs(address.query)
        self.hub.requests.append(f"{self.command} {self.path}")
        fault = self.hub.next_fault(self.command, path)
        if fault and (fault.status == "cut" or callable(fault.status)):
            if callable(fault.status):
                fault.status()
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if len(self.body) < length:  # whoever sent it died on the way
            self.close_connection = True
            return
        try:
            if fault and isinstance(fault.status, int):
                request = f"{self.url}{self.path} {self.headers['Authorization']}"
                raise Refusal(fault.status, fault.message.format(request=request))
            with self.hub.lock:
                status, body, headers = self._route(path)
        except Refusal as refusal:
            status, body = refusal.status, json.dumps({"error": str(refusal)}).encode()
            header = "".join(letter for letter in str(refusal) if letter.isprintable())
            headers = {"X-Error-Message": header, "Content-Type": "application/json"}
            if status in (429, 503):
                headers["Retry-After"] = "0"
            if refusal.error_code:
                headers["X-Error-Code"] = refusal.error_code
        if fault and fault.status == "lost":
            self.close_connection = True
            return
        self._send(status, body, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer_request

    @property
    def hub(self) -> StandInHub:
        return self.server.hub

    @property
    def url(self) -> str:
        """Under which name this Hub was called, also through itself as a proxy."""
        return f"http://{self.headers['Host']}"

    @property
    def user(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme and token not in USERS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _route(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                answer = getattr(self, name)(**found.groupdict())
                if isinstance(answer, tuple):
                    return answer
                return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}
        raise Refusal(404, f"no such page: {path}", "EntryNotFound")

    def _json(self) -> dict:
        return json.loads(self.body)

    def _repository(self, kind: str | None, id: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get((kind or "models", id))
        if repository is None or (repository.private and self.user != id.split("/")[0]):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and self.user != id.split("/")[0]:
            raise Refusal(403 if self.user else 401, "You have no right to write here")
        return repository

    def _commit(self, kind: str | None, id: str, revision: str) -> Commit:
        commit = self._repository(kind, id).at(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def who_am_i(self):
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "name": self.user, "auth": {"type": "access_token"}}

    def create(self):
        wish = self._json()
        kind, id = f"{wish.get('type') or 'model'}s", f"{wish['organization']}/{wish['name']}"
        if self.user != wish["organization"]:
            raise Refusal(403 if self.user else 401, "You have no right to create this")
        address = f"{self.url}/{'' if kind == 'models' else kind + '/'}{id}"
        body = json.dumps({"url": address, "error": "You already created this repo"}).encode()
        if (kind, id) in self.hub.repositories:
            return 409, body, {"Content-Type": "application/json"}
        private = wish.get("private") or wish.get("visibility") == "private"
        self.hub.add(kind, id, {".gitattributes": b""}, private=bool(private))
        return 200, body, {"Content-Type": "application/json"}

    def validate_yaml(self):
        return {"warnings": [], "errors": []}

    def info(self, kind, id, revision="main"):
        repository, commit = self._repository(kind, id), self._commit(kind, id, revision)
        return {
            "_id": id,
            "id": id,
            "sha": commit.sha,
            "private": repository.private,
            "tags": [],
            "siblings": [{"rfilename": path} for path in commit.files],
        }

    def tree(self, kind, id, revision, folder):
        files = self._commit(kind, id, revision).files
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in files if path.startswith(prefix)]
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("1", "true")
        folders, direct = set(), []
        for path in inside:
            parents = path.removeprefix(prefix).split("/")[:-1]
            folders.update(prefix + "/".join(parents[: i + 1]) for i in range(len(parents)))
            direct += [path] * (recursive or not parents)
        if not recursive:
            folders = {path for path in folders if "/" not in path.removeprefix(prefix)}
        return [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in folders] + [
            _file_info(path, files[path]) for path in direct
        ]

    def paths_info(self, kind, id, revision):
        files = self._commit(kind, id, revision).files
        if "json" in self.headers.get("Content-Type", ""):
            paths = self._json()["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        folders = [p for p in paths if p not in files and any(f.startswith(f"{p}/") for f in files)]
        return [_file_info(path, files[path]) for path in paths if path in files] + [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders
        ]

    def discussions(self, kind, id):
        repository = self._repository(kind, id)
        author = self.query.get("author", [None])[0]
        found = [
            {
                "title": request.title,
                "num": request.number,
                "author": {"name": request.author},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": id, "type": kind.removesuffix("s")},
                "isPullRequest": True,
            }
            for request in repository.pull_requests
            if author in (None, request.author)
        ]
        return {"count": len(found), "start": 0, "discussions": found}

    def preupload(self, kind, id, revision):
        create_pr = "create_pr" in self.query
        self._repository(kind, id, write=not create_pr and not revision.startswith("refs/pr/"))
        commit = self._commit(kind, id, revision)
        answer = []
        for wish in self._json()["files"]:
            content = commit.files.get(wish["path"])
            answer.append(
                {
                    "path": wish["path"],
                    "uploadMode": "lfs" if _is_large(wish["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": None if content is None else _etag(wish["path"], content),
                }
            )
        return {"files": answer}

    def lfs_batch(self, kind, id):
        self._repository(kind, id)
        objects = []
        for wish in self._json()["objects"]:
            answer = {"oid": wish["oid"], "size": wish["size"]}
            if wish["oid"] not in self.hub.large_files:
                answer["actions"] = {"upload": {"href": f"{self.url}/large/{wish['oid']}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content is not that of the SHA-256")
        self.hub.large_files[oid] = self.body
        return {}

    def commit(self, kind, id, revision):
        create_pr = "create_pr" in self.query
        author = next(
            (r.author for r in self._repository(kind, id).pull_requests if r.ref == revision), None
        )
        own = self.user is not None and (create_pr or self.user == author)
        repository = self._repository(kind, id, write=not own)
        parent = self._commit(kind, id, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, files = lines[0]["value"], dict(parent.files)
        if header.get("parentCommit", parent.sha) != parent.sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            self._apply(line["key"], line["value"], files)
        ref, pull_request = revision, None
        if create_pr:
            number = len(repository.pull_requests) + 1
            pull_request = PullRequest(number, header["summary"], self.user)
            repository.pull_requests.append(pull_request)
            ref = pull_request.ref
            repository.refs[ref] = parent.sha
        commit = repository.commit(ref, header["summary"], files)
        url = f"{self.url}/{'' if kind == 'models' else kind + '/'}{id}"
        return {
            "success": True,
            "commitOid": commit.sha,
            "commitUrl": f"{url}/commit/{commit.sha}",
            "pullRequestUrl": pull_request and f"{url}/discussions/{pull_request.number}",
        }

    def _apply(self, key: str, value: dict, files: dict[str, bytes]) -> None:
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in self.hub.large_files:
                raise Refusal(400, f"{value['path']} was never uploaded")
            files[value["path"]] = self.hub.large_files[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise Refusal(400, f"unknown operation {key}")

    def file(self, kind, id, revision, path):
        commit = self._commit(kind, id, revision)
        if path not in commit.files:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        content = commit.files[path]
        etag = f'"{_etag(path, content)}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if _is_large(path):
            headers |= {"X-Linked-ETag": etag, "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return 206, content[start : end + 1], headers
        return 200, content, headers


_ROUTES = [
    ("GET", "/api/whoami-v2", "who_am_i"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", API, "info"),
    ("GET", API + "/revision/(?P<revision>.+)", "info"),
    ("GET", API + r"/tree/(?P<revision>refs/pr/\d+|[^/]+)/?(?P<folder>.*)", "tree"),
    ("POST", API + "/paths-info/(?P<revision>.+)", "paths_info"),
    ("GET", API + "/discussions", "discussions"),
    ("POST", API + "/preupload/(?P<revision>.+)", "preupload"),
    ("POST", API + "/commit/(?P<revision>.+)", "commit"),
    ("POST", FILES + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/large/(?P<oid>[0-9a-f]{64})", "upload"),
    ("GET HEAD", FILES + r"/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", "file"),
]


def _is_large(path: str) -> bool:
    return path.endswith((".parquet", ".safetensors", ".png"))


def _etag(path: str, content: bytes) -> str:
    if _is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _file_info(path: str, content: bytes) -> dict:
    info = {"type": "file", "path": path, "size": len(content), "oid": _etag(path, content)}
    if _is_large(path):
        info["lfs"] = {"oid": info["oid"], "size": len(content), "pointerSize": 130}
    return info
