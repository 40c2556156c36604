"""Local ports that stay ours, also while nothing listens on them."""

import socket
import sys
from types import TracebackType
from typing import Self

from longarm_edge.tunnel.errors import Cause, PermanentTunnelError


class ReservedPort:
    """A port of the loopback that no other program is given.

    On Linux a socket stays bound to it and never listens: whoever listens with SO_REUSEADDR, as ssh and sshtunnel do,
    can still have it, but the kernel hands it to nobody else. Without that, a client that dials a free port over and
    over would in the end get the same port for its own side and be connected to itself.
    """

    def __init__(self, port: int, setting: str) -> None:
        """Takes the port.

        Args:
          port: Which one; 0 takes a free one, see the attribute number.
          setting: The setting that names it, for the error.

        Raises:
          PermanentTunnelError: Somebody listens on it.
        """
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
        except OSError as error:
            self._socket.close()
            raise PermanentTunnelError(
                Cause.LOCAL_PORT,
                f"The local port {port} is not to be had ({error.strerror}). Set {setting} to another one, or to 0 for "
                "a free one.",
            ) from error
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            # Elsewhere a bound socket would be in the way of the one that is to listen
            self._socket.close()

    def close(self) -> None:
        """Gives the port back. A second close does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
