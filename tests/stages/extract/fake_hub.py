"""A model hub of our own on 127.0.0.1: the few requests that huggingface_hub makes, and faults on demand."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "a" * 40


class FakeHub:
    """Repositories of files in memory. ``requests`` are the paths asked for, with the first byte where it is not 0.

    ``cut``: file -> bytes after which the connection drops, once; ``swap``: file -> other content that is sent;
    ``hold``: file -> bytes after which nothing more comes, until the hub is closed; ``gated``: repositories whose files
    need a licence to be accepted.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, int]] = []
        self.cut: dict[str, int] = {}
        self.swap: dict[str, bytes] = {}
        self.hold: dict[str, int] = {}
        self.gated: set[str] = set()
        self.closing = threading.Event()
        self.address = ""

    def add(self, hub_id: str, folder: Path) -> None:
        """Offer every file of ``folder``."""
        files = (path for path in folder.rglob("*") if path.is_file())
        self.repositories[hub_id] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def sent(self, file: str) -> list[int]:
        """First byte of every download of ``file``."""
        return [first for path, first in self.requests if path.endswith(f"/{file}")]


def _facts(path: str, content: bytes) -> dict[str, object]:
    facts: dict[str, object] = {"type": "file", "path": path, "rfilename": path, "size": len(content), "oid": "b" * 40}
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(content).hexdigest()
        facts["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 134}
    return facts


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            owner, name, *rest = path.removeprefix("api/models/").split("/")
            return self._api(f"{owner}/{name}", rest)
        owner, name, _resolve, _revision, *parts = path.split("/")
        return self._file(f"{owner}/{name}", "/".join(parts))

    def _api(self, hub_id: str, rest: list[str]) -> None:
        files = self.hub.repositories.get(hub_id)
        if files is None:
            return self._json(404, {"error": "Repository not found"})
        listing = [_facts(*item) for item in files.items()]
        if rest[:1] == ["tree"]:
            return self._json(200, listing)
        return self._json(200, {"id": hub_id, "sha": REVISION, "siblings": listing})

    def _json(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status in (403, 404):
            self.send_header("X-Error-Code", "RepoNotFound" if status == 404 else "GatedRepo")
        self.end_headers()
        self.wfile.write(body)

    def _file(self, hub_id: str, file: str) -> None:
        if hub_id in self.hub.gated:
            self._json(403, {"error": "Access to this repository is restricted"})
            return
        content = self.hub.repositories[hub_id][file]
        digest = hashlib.sha256(content).hexdigest()
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        body = self.hub.swap.get(file, content)[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.requests.append((self.path, first))
        if file in self.hub.hold:
            self.wfile.write(body[: self.hub.hold[file]])
            self.hub.closing.wait(60)
            self.close_connection = True
            return
        cut = self.hub.cut.pop(file, None)
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Run a hub on a port of its own."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
