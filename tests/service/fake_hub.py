"""A model hub on this machine: the part of the hub's interface that huggingface_hub asks when it fetches a model."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """Models by name, each a file's content by its path.

    Attributes:
      models: What there is.
      sizes: Sizes to claim instead of the true ones, by path.
      silent: Paths of files that are promised and never come, but for a first piece.
      asked: Paths of the files that were asked for, in order.
      calls: Method and path of every request.
      mute: Whether requests are taken and never answered.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    mute: bool = False
    address: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    broken_off: threading.Event = field(default_factory=threading.Event)

    def size(self, path: str, content: bytes) -> int:
        return self.sizes.get(path, len(content))


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Answers at hub.address until the end."""
    hub = Hub()

    class Handler(_Handler):
        served = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield hub
        hub.ended.set()
        server.shutdown()
        thread.join()


def go_online(monkeypatch: pytest.MonkeyPatch, cache: Path, address: str) -> None:
    """Has processes of this test ask the hub at address, with this cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.served
        hub.calls.append(f"{self.command} {self.path}")
        if hub.mute:
            hub.begun.set()
            hub.ended.wait()
            return
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/(revision|tree)/([^/]+))?", path):
            name, what, revision = match.groups()
            if name not in hub.models:
                self._refuse("RepoNotFound")
            elif revision not in (None, "main", COMMIT):
                self._refuse("RevisionNotFound")
            elif what == "tree":
                self._send(json.dumps([self._entry(*item) for item in hub.models[name].items()]).encode())
            else:
                siblings = [{"rfilename": path} for path in hub.models[name]]
                self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            name, _, file = match.groups()
            self._send_file(file, hub.models[name][file])
        else:
            self._refuse("EntryNotFound")

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": self.served.size(path, content), "oid": _etag(path, content)}

    def _send_file(self, path: str, content: bytes) -> None:
        hub = self.served
        self.send_response(200)
        self.send_header("ETag", f'"{_etag(path, content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(hub.size(path, content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        hub.asked.append(path)
        if path not in hub.silent:
            self.wfile.write(content)
            return
        self.wfile.write(content[:1000])
        self.wfile.flush()
        hub.begun.set()
        while not hub.ended.wait(0.05):
            try:
                # A few bytes now and then, until nobody takes them
                self.wfile.write(b"x")
            except OSError:
                hub.broken_off.set()
                return

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def _etag(path: str, content: bytes) -> str:
    return hashlib.sha1(path.encode() + content).hexdigest()
