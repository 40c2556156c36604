"""One established SSH connection with its forwards, as both backends give it, and the TCP connection under it."""

import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from longarm_edge.tunnel.dialing import open_connection
from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.host_keys import HostKeys
from longarm_edge.tunnel.settings import SshSettings

# Where tcp_info of linux/tcp.h has tcpi_bytes_acked and tcpi_bytes_received
_TCP_INFO_BYTES = (120, "QQ")


class Link(Protocol):
    """An SSH connection that forwards. Closed by whoever connected it."""

    ended: threading.Event
    """Set once the connection is gone, for whatever reason."""
    forward_error: TunnelError | None
    """Why the SSH server did not reach the service when it tried last; reset by whoever sees the service answer."""

    def loss(self) -> TunnelError:
        """Returns why the connection is gone; only after ended is set."""

    def traffic(self) -> tuple[int, int]:
        """Returns the bytes sent and received so far, encryption included; 0 where nobody can tell."""

    def close(self) -> None:
        """Ends the connection and what listens on this machine. A second close does nothing."""


@dataclass(frozen=True)
class Route:
    """What a backend connects.

    Attributes:
      settings: How to reach and to trust the SSH server.
      forwards: Paths of Unix sockets, and the port of the far loopback that each is to lead to.
      host_keys: Decides about host keys.
      warn: Called with what a person should know and that stops nothing.
    """

    settings: SshSettings
    forwards: Mapping[str, int]
    host_keys: HostKeys
    warn: Callable[[str], None] = field(default=lambda _: None)


# Returns an established link. Raises TunnelError; PermanentTunnelError if no further try can end otherwise.
Connect = Callable[[Route], Link]


def dial(host: str, port: int, settings: SshSettings) -> socket.socket:
    """Returns a TCP connection, tuned for small messages both ways and for an early end when it dies.

    Raises:
      TunnelError: The name has no address, or the address does not answer.
    """
    try:
        connection = open_connection(host, port, settings.connect_timeout)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TunnelError(
            Cause.DNS, f"The name {host} has no address ({reason}). Check LONGARM_EDGE_SSH__HOST and the network."
        ) from error
    except TimeoutError as error:
        raise TunnelError(
            Cause.TCP,
            f"{host} port {port} does not answer within {settings.connect_timeout:g} s. Check that the machine runs, "
            "the port (LONGARM_EDGE_SSH__PORT) and firewalls.",
        ) from error
    except OSError as error:
        raise TunnelError(
            Cause.TCP,
            f"{host} port {port} takes no connection ({error.strerror or error}). Check that the machine and its SSH "
            "server run, and the port (LONGARM_EDGE_SSH__PORT).",
        ) from error
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        timeout = int(settings.silence_timeout * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)
    return connection


def forward_refused(port: int) -> PermanentTunnelError:
    """Returns the error for an SSH server that does not allow the way to the service."""
    return PermanentTunnelError(
        Cause.FORWARD_REFUSED,
        f"The SSH server refuses to forward 127.0.0.1:{port} (administratively prohibited). Allow it in its "
        "sshd_config: AllowTcpForwarding and PermitOpen; or in authorized_keys: restrict, permitopen.",
    )


def nothing_listens(port: int) -> TunnelError:
    """Returns the error for a far side without a service."""
    return TunnelError(Cause.SERVICE, f"nothing listens on 127.0.0.1:{port} there")


def tcp_traffic(connection: socket.socket) -> tuple[int, int]:
    """Returns the bytes that a TCP connection sent (and the peer acknowledged) and received, as Linux counts them."""
    if sys.platform != "linux":
        return 0, 0
    offset, layout = _TCP_INFO_BYTES
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, offset + struct.calcsize(layout))
        sent, received = struct.unpack_from(layout, info, offset)
    except (OSError, struct.error):
        return 0, 0
    return sent, received
