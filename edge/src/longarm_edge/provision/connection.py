"""Connects to the far side, with the tunnel's settings, host-key policy and ways to log in."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import paramiko  # type: ignore[import-untyped]

from longarm_edge.provision.aside import Aside
from longarm_edge.provision.errors import ConnectionLostError
from longarm_edge.tunnel.errors import PermanentTunnelError, TunnelError
from longarm_edge.tunnel.host_keys import HostKeys
from longarm_edge.tunnel.link import Route
from longarm_edge.tunnel.paramiko_link import log_in
from longarm_edge.tunnel.settings import SshSettings
from longarm_edge.tunnel.tunnel import Ask
from longarm_wire.settings import ConfigurationError

KEEPALIVE_SECONDS = 2


@contextmanager
def connected(settings: SshSettings, ask: Ask | None, aside: Aside | None = None) -> Iterator[paramiko.Transport]:
    """Gives an SSH connection that is logged in. Python speaks SSH here, whatever settings.backend says.

    Args:
      settings: How to reach and to trust the far side.
      ask: Asks a person about an unknown host key; None where nobody is there.
      aside: Whoever waits for this, and may cut the connection; None for nobody.

    Raises:
      ConfigurationError: It can never work as configured: wrong key, changed host key.
      ConnectionLostError: It did not work this time.
    """
    with ExitStack() as stack:
        try:
            route = Route(settings=settings, forwards={}, host_keys=HostKeys(settings, ask))
            connection, transport = log_in(route, stack)
        except PermanentTunnelError as error:
            raise ConfigurationError([error.message]) from error
        except TunnelError as error:
            raise ConnectionLostError(error.message) from error
        # The socket notices that the far side is gone only while something is on its way
        transport.set_keepalive(KEEPALIVE_SECONDS)
        if aside is not None:
            stack.enter_context(aside.cut_by(lambda: _cut(connection)))
        yield transport


def _cut(connection: socket.socket) -> None:
    """Ends a connection whatever anybody does with it: who reads finds its end, who writes an error."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
