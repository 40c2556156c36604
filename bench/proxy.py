"""A TCP proxy that delays and throttles: the stand-in where there are no network namespaces."""

import contextlib
import socket
import threading
import time
from collections import deque

from bench.links import MEGABIT, Direction, LinkSpec

READ_BYTES = 16_384
# What is under way at most: a sender that runs ahead of the link has to wait, as TCP would make it
WINDOW_BYTES = 256_000


class Proxy:
    """Listens on a port of its own and leads to another on this machine."""

    def __init__(self, target_port: int, link: LinkSpec) -> None:
        """Begins to listen."""
        self._target_port = target_port
        # Loss of bytes would break TCP's promise: the proxy has none
        self._up = Direction(link.rtt / 2, link.up_mbit * MEGABIT)
        self._down = Direction(link.rtt / 2, link.down_mbit * MEGABIT)
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def up_bytes(self) -> int:
        """Bytes towards the target so far."""
        return self._up.passed_bytes

    @property
    def down_bytes(self) -> int:
        """Bytes from the target so far."""
        return self._down.passed_bytes

    def silence(self, seconds: float) -> None:
        """Holds everything back for a while."""
        self._silent_until = time.monotonic() + seconds

    def close(self) -> None:
        """Drops every connection."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target_port), 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._open += [near, far]
                for source, sink, direction in ((near, far, self._up), (far, near, self._down)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    _Pump(source, sink, direction, self)

    def arrival(self, direction: Direction, size: int) -> float:
        """Returns when size bytes sent now arrive."""
        with self._lock:
            while (instant := direction.arrival(size, time.monotonic())) is None:
                time.sleep(0.001)  # the queue is full: TCP's sender would hold back
            return instant

    def wait_until(self, instant: float) -> None:
        """Returns at instant, or when the silence is over."""
        while (delay := max(instant, self._silent_until) - time.monotonic()) > 0:
            time.sleep(delay)


class _Pump:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: Direction, proxy: Proxy) -> None:
        self._source, self._sink, self._direction, self._proxy = source, sink, direction, proxy
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()
        for work in (self._take_in, self._give_out):
            threading.Thread(target=work, name="pump", daemon=True).start()

    def _take_in(self) -> None:
        data = b"?"
        while data:
            try:
                data = self._source.recv(READ_BYTES)
            except OSError:
                data = b""
            instant = self._proxy.arrival(self._direction, len(data))
            with self._changed:
                self._under_way.append((instant, data))
                self._changed.notify_all()
                self._changed.wait_for(lambda: sum(len(part) for _, part in self._under_way) < WINDOW_BYTES)

    def _give_out(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._under_way) > 0)
                instant, data = self._under_way[0]
            self._proxy.wait_until(instant)
            with contextlib.suppress(OSError):
                if data:
                    self._sink.sendall(data)
                else:
                    self._sink.shutdown(socket.SHUT_WR)
            with self._changed:
                self._under_way.popleft()
                self._changed.notify_all()
            if not data:
                return
