"""A small HTTP endpoint beside the real work: health answers and Prometheus metrics, bound to loopback."""

import errno
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

logger = logging.getLogger(__name__)

# At a time. Every user of the machine can connect, and a process that is out of files can do nothing any more
MAX_CONNECTIONS = 16
# Seconds for the oldest of them to end when its place is needed
ROOM_TIMEOUT = 1.0

# Answers (healthy, one line that says why)
Check = Callable[[], tuple[bool, str]]


class HttpEndpoint:
    """Serves /metrics from a registry and one path per check, on a thread of its own.

    A healthy check answers 200, an unhealthy one 503. Use as a context manager, or call start and close.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, checks: Mapping[str, Check]) -> None:
        """Binds the socket.

        Args:
          host: Address to bind.
          port: Port to bind; 0 takes a free one, see the attribute port.
          registry: What /metrics shows.
          checks: From path, such as "/healthz", to its check.

        Raises:
          OSError: The port is taken, with the address in the message.
        """
        handler = _handler(registry, checks)
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise OSError(error.errno, f"Cannot listen on http://{host}:{port}: {error.strerror}") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stops to answer and frees the port. A second close does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def not_listening(error: OSError, settings: str) -> str:
    """Returns why an endpoint does not listen and which of its two settings to change.

    Args:
      error: From HttpEndpoint.
      settings: What the names of the two begin with, such as LONGARM_EDGE_METRICS.
    """
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return f"{error.strerror}. Set {settings}_PORT to another port, or to 0 for a free one."
    return f"{error.strerror}. Set {settings}_HOST to an address of this machine."


def _run(check: Check) -> tuple[bool, str]:
    try:
        return check()
    except Exception:
        # Whoever asks needs an answer: unhealthy
        logger.exception("A health check failed")
        return False, "the check itself failed; see the log"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A second process on the same port must fail, not share it
    allow_reuse_port = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.Semaphore(MAX_CONNECTIONS)
        self._open: dict[socket.socket, None] = {}  # the oldest first
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # Who holds connections makes room for who comes to ask something
        if not self._room.acquire(blocking=False):
            for oldest in list(self._open)[:1]:
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            if not self._room.acquire(timeout=ROOM_TIMEOUT):
                request.close()
                return
        self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        if request in self._open:
            del self._open[request]
            self._room.release()

    def server_bind(self) -> None:
        # HTTPServer's own asks DNS for the host's name, which takes seconds on a machine without a network
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, *_: object) -> None:
        # A scraper that hangs up is no news, anything else is a fault of a check or a collector
        if not isinstance(sys.exception(), OSError):
            logger.exception("An HTTP request failed")


def _handler(registry: CollectorRegistry, checks: Mapping[str, Check]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.split("?", 1)[0]
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, encode(registry), content_type)
            elif path in checks:
                healthy, line = _run(checks[path])
                self._answer(200 if healthy else 503, f"{line}\n".encode(), "text/plain; charset=utf-8")
            else:
                known = ", ".join(["/metrics", *checks])
                self._answer(404, f"Nothing at {path}. There is {known}\n".encode(), "text/plain; charset=utf-8")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Scrapes are no news."""

    return Handler
