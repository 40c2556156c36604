"""Forwards ports over paramiko: sshtunnel's servers, with handlers that are fast and close what they open in order.

sshtunnel as it comes costs 44 ms a round trip for requests of some 10 kB and more: Nagle's algorithm waits for delayed
acknowledgements. The link turns it off on every hop, the far one included, and the handlers move bigger pieces.

paramiko as it comes may close a channel before it sends the last that was written to it. To sshd that is an error for
which it ends the whole connection, so anybody who hangs up in the middle of a request could cost everybody the link.
"""

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import paramiko  # type: ignore[import-untyped]
import sshtunnel  # type: ignore[import-untyped]

from longarm_edge.tunnel.errors import Cause, TunnelError
from longarm_edge.tunnel.link import Route

logger = logging.getLogger(__name__)

# The largest payload that fits one of paramiko's packets
READ_BYTES = 32704


class Forwarder(sshtunnel.SSHTunnelForwarder):  # type: ignore[misc]
    """sshtunnel's local servers over an SSH connection of ours, with handlers of ours."""

    def __init__(
        self,
        transport: paramiko.Transport,
        route: Route,
        on_failure: Callable[[int, BaseException | None], None],
    ) -> None:
        """Prepares.

        Args:
          transport: Is logged in, and answers goodbyes as below.
          route: What to forward.
          on_failure: Called with a far port that was not reached, and why.
        """
        self._transport = transport
        self._on_failure = on_failure
        super().__init__(
            "127.0.0.1",  # connected already: nothing below is dialled
            ssh_config_file=None,
            logger=logger,
            local_bind_addresses=list(route.forwards),
            remote_bind_addresses=[("127.0.0.1", port) for port in route.forwards.values()],
        )

    def begin(self) -> None:
        """Listens."""
        for path in self._local_binds:
            Path(path).unlink(missing_ok=True)  # what a killed process left behind
        try:
            self.start()
        except sshtunnel.BaseSSHTunnelForwarderError as error:
            raise self._no_socket() from error
        if len(self._server_list) != len(self._local_binds):
            self.end()
            raise self._no_socket()

    def end(self) -> None:
        """Stops listening."""
        if self._server_list:
            self.stop(force=True)

    def _no_socket(self) -> TunnelError:
        return TunnelError(Cause.LOCAL_PORT, f"Expected to listen at {' and '.join(self._local_binds)}, and could not.")

    @staticmethod
    def _consolidate_auth(*_: object, **__: object) -> tuple[None, list[object]]:
        """Finds no keys: the connection is logged in already."""
        return None, []

    def _make_ssh_forward_handler_class(self, remote_address_: tuple[str, int]) -> type[sshtunnel._ForwardHandler]:
        class Handler(_Handler):
            remote_address = remote_address_
            ssh_transport = self._transport
            logger = self.logger
            on_failure = staticmethod(self._on_failure)

        return Handler


class _Handler(sshtunnel._ForwardHandler):  # type: ignore[misc]
    """One forwarded connection: a thread for each direction, so that neither waits for the other."""

    on_failure: Callable[[int, BaseException | None], None]

    def handle(self) -> None:
        try:
            super().handle()
        except sshtunnel.HandlerSSHTunnelForwarderError as error:
            self.on_failure(self.remote_address[1], error.__context__)

    def _redirect(self, channel: paramiko.Channel) -> None:
        down = threading.Thread(target=self._pump_down, args=(channel,), name="ssh-down", daemon=True)
        down.start()
        try:
            while piece := self.request.recv(READ_BYTES):
                with _sending(channel):
                    channel.sendall(piece)
            with _sending(channel):
                channel.shutdown_write()
        except (OSError, EOFError, paramiko.SSHException):
            _hang_up(channel)
        finally:
            down.join()

    def _pump_down(self, channel: paramiko.Channel) -> None:
        try:
            while piece := channel.recv(READ_BYTES):
                self.request.sendall(piece)
        except (OSError, EOFError, paramiko.SSHException):
            pass
        finally:
            # Wakes the other direction
            with suppress(OSError):
                self.request.shutdown(socket.SHUT_RDWR)
            _hang_up(channel)


def answer_goodbye(channel: paramiko.Channel, _: paramiko.Message) -> None:
    """Closes a channel that the far side has closed. For a transport, whose thread is not to wait for anything."""

    def answer() -> None:
        _hang_up(channel)
        channel.transport._unlink_channel(channel.chanid)

    threading.Thread(target=answer, name="ssh-goodbye", daemon=True).start()


def _hang_up(channel: paramiko.Channel) -> None:
    """Closes a channel, and says so after what is being sent on it. A second time does nothing."""
    with channel.lock:
        last_words = channel._close_internal()  # from here on nobody begins to send, and who waits for room gives up
    with suppress(OSError, EOFError, paramiko.SSHException), _sending(channel):
        for message in filter(None, last_words):
            channel.transport._send_user_message(message)


def _sending(channel: paramiko.Channel) -> threading.Lock:
    """Returns the lock of whoever sends on a channel."""
    lock: threading.Lock = channel.__dict__.setdefault("longarm_sending", threading.Lock())
    return lock
