"""A Hugging Face Hub on 127.0.0.1 for its own client: repositories, commits, large files, revisions; and faults."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_owner"
PAGE = 50  #: entries of one page of a listing; the client follows the links to the others
LFS_BYTES = 100  #: larger files are large files here, so that small tests meet both kinds


@dataclass
class Repository:
    """The commits of a repository: revision -> path -> content, the newest last."""

    private: bool
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {".gitattributes": b""}})

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


class Hub:
    """``repositories`` by ``models/owner/name`` or ``datasets/owner/name``; ``uploads``: the digests of sent LFS files.

    ``downloads``: the paths that were sent; ``full_after``: uploads that are taken before the hub refuses more, as
    one that is full does; ``hold_after``: uploads, and downloads of arrays, before it stops answering, which sets
    ``holding``; ``silent``: whether answers to commits never come.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.downloads: list[str] = []
        self.full_after: int | None = None
        self.hold_after: int | None = None
        self.silent = False
        self.closing = threading.Event()
        self.holding = threading.Event()
        self.lock = threading.Lock()
        self.address = ""


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def _answer(self, handle) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            with self.hub.lock:
                status, headers, body = handle(unquote(parts.path).strip("/"))
        except _RefusedError as refused:
            status, headers, body = refused.status, {"X-Error-Code": refused.code}, b"{}"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _get(self, path: str):
        if match := re.fullmatch(r"api/((?:models|datasets)/[^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            repository = self._repository(match[1])
            return _json({"id": match[1].partition("/")[2], "sha": repository.head, "private": repository.private})
        if match := re.fullmatch(r"api/((?:models|datasets)/[^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            return self._tree(*match.groups())
        if match := re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            name = f"{match[1] or 'models/'}{match[2]}"
            if self._repository(name).gated:
                raise _RefusedError(403, "GatedRepo")
            files = self._revision(name, match[3])
            if match[4] not in files:
                raise _RefusedError(404, "EntryNotFound")
            if "/c/" in match[4]:
                self._hold(sum("/c/" in name for name in self.hub.downloads))
            self.hub.downloads.append(match[4])
            first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            return (206 if first else 200), {"X-Repo-Commit": match[3]}, files[match[4]][first:]
        raise _RefusedError(404)

    def _tree(self, name: str, revision: str, folder: str | None):
        files = self._revision(name, revision)
        prefix = f"{folder}/" if folder else ""
        inside = sorted(path for path in files if path.startswith(prefix))
        if folder and not inside:
            raise _RefusedError(404, "EntryNotFound")
        first = int(self.query.get("cursor", ["0"])[0])
        listing = [_facts(path, files[path]) for path in inside[first : first + PAGE]]
        status, headers, body = _json(listing)
        if first + PAGE < len(inside):
            here = f"{self.hub.address}/api/{name}/tree/{revision}" + (f"/{folder}" if folder else "")
            headers["Link"] = f'<{here}?recursive=true&cursor={first + PAGE}>; rel="next"'
        return status, headers, body

    def _post(self, path: str):
        values = [json.loads(line) for line in self.body.splitlines()] if path.endswith("main") else None
        if path == "api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        self._require_token()
        if path == "api/repos/create":
            wanted = json.loads(self.body)
            kind = f"{wanted.get('type') or 'model'}s"
            name = f"{kind}/{wanted['organization'] or 'owner'}/{wanted['name']}"
            hidden = wanted.get("visibility") == "private" or wanted.get("private") is True
            self.hub.repositories.setdefault(name, Repository(private=hidden))
            return _json({"url": f"{self.hub.address}/{name.removeprefix('models/')}"})
        if match := re.fullmatch(r"api/((?:models|datasets)/[^/]+/[^/]+)/preupload/main", path):
            return self._preupload(self._repository(match[1]), json.loads(self.body)["files"])
        if match := re.fullmatch(r"(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repository(f"{match[1] or 'models/'}{match[2]}")
            return self._batch(json.loads(self.body)["objects"])
        if match := re.fullmatch(r"api/((?:models|datasets)/[^/]+/[^/]+)/commit/main", path):
            return self._commit(match[1], values)
        raise _RefusedError(404)

    def _preupload(self, repository: Repository, wanted: list[dict]):
        def facts(file: dict) -> dict:
            known = repository.files.get(file["path"])
            large = file["size"] > LFS_BYTES and not file["path"].endswith((".json", ".jsonl", ".md"))
            oid = None if known is None else hashlib.sha256(known).hexdigest() if large else _git_hash(known)
            return {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }

        return _json({"files": [facts(file) for file in wanted]})

    def _batch(self, objects: list[dict]):
        def facts(each: dict) -> dict:
            upload = {"href": f"{self.hub.address}/lfs/{each['oid']}"}
            return each if each["oid"] in self.hub.objects else {**each, "actions": {"upload": upload}}

        return _json({"transfer": "basic", "objects": [facts(each) for each in objects]})

    def _put(self, path: str):
        oid = path.removeprefix("lfs/")
        if self.hub.full_after is not None and len(self.hub.uploads) >= self.hub.full_after:
            raise _RefusedError(507)
        self._hold(len(self.hub.uploads))
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(400)
        self.hub.objects[oid] = self.body
        self.hub.uploads.append(oid)
        return _json({})

    def _commit(self, name: str, lines: list[dict]):
        self._hold(0, always=self.hub.silent)
        repository = self._repository(name)
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = f"{len(repository.commits):040d}"
        repository.commits[sha] = files
        return _json({"commitUrl": f"{self.hub.address}/{name}/commit/{sha}", "commitOid": sha})

    def _hold(self, done: int, *, always: bool = False) -> None:
        """Stop answering after so many transfers."""
        if always or (self.hub.hold_after is not None and done >= self.hub.hold_after):
            self.hub.holding.set()
            self.hub.lock.release()
            self.hub.closing.wait(60)
            self.hub.lock.acquire()
            raise _RefusedError(507)

    def _repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise _RefusedError(404, "RepoNotFound")
        return found

    def _revision(self, name: str, revision: str) -> dict[str, bytes]:
        repository = self._repository(name)
        return repository.commits[repository.head if revision == "main" else revision]

    def _require_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _RefusedError(403)


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _facts(path: str, content: bytes) -> dict[str, object]:
    facts: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
    if len(content) > LFS_BYTES:
        facts["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return facts


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing about clients that were killed."""


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a port of its own."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
