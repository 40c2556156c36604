"""Where the tunnel begins on this machine: sockets that one user reaches, and ports for other programs.

A port of the loopback is reached by everybody on the machine, and goes to whoever listens first. So the tunnel begins
at Unix sockets in a private directory, where nobody else can listen, connect or look. A port that is asked for on top
is held by a socket that listens from the start to the end: nobody else can have it while the tunnel is down.
"""

import re
import shutil
import socket
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from longarm_edge.tunnel.errors import Cause, PermanentTunnelError
from longarm_edge.tunnel.settings import SshSettings

# Short enough for a socket's address (104 bytes on macOS, 108 on Linux), and plain enough for every notation of one
_PLAIN_PLACE = re.compile(r"[\w./-]{1,70}", re.ASCII)
_PIECE_BYTES = 65536
# On one port at a time. Whoever asks for more waits: the tunnel needs files and threads as well
MAX_CONNECTIONS = 32


class NearEnd:
    """The tunnel's addresses on this machine. Use as a context manager; nothing changes until it is closed.

    Attributes:
      directory: Holds the sockets, see socket_path.
      ports: Descriptors of sockets that listen on a local port, and the far port that each is to lead to.
    """

    def __init__(self, settings: SshSettings) -> None:
        """Takes them.

        Raises:
          PermanentTunnelError: A local port is taken, or there is no place for the directory.
        """
        with ExitStack() as stack:
            self.ports = {
                stack.enter_context(_hold(local, f"LONGARM_EDGE_SSH__{name}")).fileno(): far
                for far, local, name in (
                    (settings.service_port, settings.local_port, "LOCAL_PORT"),
                    (settings.metrics_port, settings.local_metrics_port, "LOCAL_METRICS_PORT"),
                )
                if local
            }
            self.directory = _private_directory()
            stack.callback(remove, self.directory)
            self._taken = stack.pop_all()

    def close(self) -> None:
        """Gives everything back. A second close does nothing."""
        self._taken.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def socket_path(directory: str, far_port: int) -> str:
    """Returns the path of the Unix socket that leads to a port of the far machine."""
    return f"{directory}/{far_port}"


def remove(directory: str) -> None:
    """Removes the directory of a near end. One that is gone already does no harm."""
    shutil.rmtree(directory, ignore_errors=True)


def lead(listener: socket.socket, path: str) -> None:
    """Leads whoever connects to a listening socket on to the Unix socket at path, for as long as this process runs.

    While nobody listens there, the tunnel being down, connections are accepted and closed.
    """

    room = threading.Semaphore(MAX_CONNECTIONS)

    def accept() -> None:
        while True:
            room.acquire()
            try:
                near, _ = listener.accept()
            except OSError:  # given up meanwhile, or too many files are open
                room.release()
                time.sleep(0.1)
                continue
            try:
                threading.Thread(target=carry, args=(near,), name="carry", daemon=True).start()
            except RuntimeError:  # too many threads run
                near.close()
                room.release()

    def carry(near: socket.socket) -> None:
        try:
            with near, suppress(OSError, RuntimeError):
                _carry(near, path)
        finally:
            room.release()

    threading.Thread(target=accept, name="lead", daemon=True).start()


def _carry(near: socket.socket, path: str) -> None:
    """Carries bytes both ways until the far side is done."""
    with socket.socket(socket.AF_UNIX) as far:
        far.connect(path)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # What ends the one direction wakes the other
        back = threading.Thread(target=_pump, args=(far, near, socket.SHUT_RDWR), name="carry-back", daemon=True)
        back.start()
        _pump(near, far, socket.SHUT_WR)
        back.join()


def _pump(source: socket.socket, sink: socket.socket, shut: int) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(shut)


def _hold(port: int, setting: str) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise PermanentTunnelError(
            Cause.LOCAL_PORT,
            f"The local port {port} is not to be had ({error.strerror}). Set {setting} to another one, or to 0 for "
            "none.",
        ) from error


def place_for_sockets() -> str:
    """Returns where to make a directory for sockets: as for any temporary file, if that can be part of an address."""
    usual = tempfile.gettempdir()
    return usual if _PLAIN_PLACE.fullmatch(usual) else "/tmp"  # noqa: S108  # mkdtemp makes its own directory in it


def _private_directory() -> str:
    place = "the directory for temporary files"
    try:
        place = place_for_sockets()
        return tempfile.mkdtemp(prefix="longarm-", dir=place)
    except OSError as error:  # also if there is no such directory at all
        raise PermanentTunnelError(
            Cause.CONFIGURATION,
            f"Expected to make a directory for the tunnel's sockets in {place}: {error.strerror}. Set TMPDIR to a "
            "directory that can be written.",
        ) from error
