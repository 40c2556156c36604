"""The tunnel in Python: paramiko speaks SSH, sshtunnel forwards the ports."""

import base64
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import paramiko  # type: ignore[import-untyped]
from paramiko.common import MSG_CHANNEL_CLOSE  # type: ignore[import-untyped]

from longarm_edge.tunnel import keys, refusals, ssh_config
from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.host_keys import HostKey
from longarm_edge.tunnel.link import Route, dial, forward_refused, nothing_listens, tcp_traffic
from longarm_edge.tunnel.paramiko_forwarder import READ_BYTES, Forwarder, answer_goodbye
from longarm_edge.tunnel.settings import SshSettings
from longarm_edge.tunnel.ssh_config import Hop

# What goes wrong comes up as an exception; paramiko would log its traceback as well
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

# Fast with the processor's help. What the others prefer is behind them for servers that lack both
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
PING_INTERVAL = 1.0
WATCH_INTERVAL = 0.25
# RFC 4254, section 5.1
ADMINISTRATIVELY_PROHIBITED = 1
# RFC 4253, section 11.1; sshd's way to say that there were too many attempts to log in
TOO_MANY_ATTEMPTS = "Too many authentication failures"


def connect(route: Route) -> "ParamikoLink":
    """Returns an established link, see longarm_edge.tunnel.link.Connect."""
    with ExitStack() as stack:
        connection, transport = log_in(route, stack)
        link = ParamikoLink(route, connection, transport)
        link.start(stack)
    return link


def log_in(route: Route, stack: ExitStack) -> tuple[socket.socket, "_Transport"]:
    """Returns the TCP connection to the first SSH server on the way, and the login at the last.

    Args:
      route: How to reach and to trust them. The ports play no part here.
      stack: Closes both.

    Raises:
      TunnelError: It did not work; PermanentTunnelError if no further try can end otherwise.
    """
    settings = route.settings
    hops = ssh_config.route(settings)
    connection = dial(hops[0].host, hops[0].port, settings)
    stack.callback(connection.close)
    carrier: Any = connection
    for hop, following in zip(hops, [*hops[1:], None], strict=True):
        transport = _shake_hands(carrier, hop, settings)
        stack.callback(transport.close)
        _check_host_key(transport, hop, route, pinned=following is None)
        _log_in(transport, hop, settings, with_password=following is None)
        if following is not None:
            carrier = _reach(transport, following, settings)
    return connection, transport


class ParamikoLink:
    """See longarm_edge.tunnel.link.Link."""

    def __init__(self, route: Route, connection: socket.socket, transport: "_Transport") -> None:
        """Prepares to forward over an SSH connection that is logged in."""
        self.ended = threading.Event()
        self.forward_error: TunnelError | None = None
        self._settings = route.settings
        self._warn = route.warn
        self._connection = connection
        self._transport = transport
        self._forwarder = Forwarder(transport, route, self._forward_failed)
        self._resources = ExitStack()
        self._heard = time.monotonic()
        self._silent = False
        self._threads = [
            threading.Thread(target=target, name=f"ssh-{target.__name__.strip('_')}", daemon=True)
            for target in (self._make_far_side_prompt, self._ping, self._watch)
        ]

    def start(self, resources: ExitStack) -> None:
        """Begins to forward, and takes over what is to be closed with the link.

        Raises:
          TunnelError: There is no place to listen.
        """
        self._forwarder.begin()
        for thread in self._threads:
            thread.start()
        self._resources = resources.pop_all()

    def loss(self) -> TunnelError:
        """Returns why the connection is gone."""
        if self._silent:
            return TunnelError(Cause.SILENT, f"The link gave no sign of life for {self._settings.silence_timeout:g} s.")
        reason = self._transport.goodbye or "without a word"
        return TunnelError(Cause.CLOSED, f"The link was closed by the far side or the network ({reason}).")

    def traffic(self) -> tuple[int, int]:
        """Returns the bytes sent and received so far, encryption included."""
        return tcp_traffic(self._connection)

    def close(self) -> None:
        """Ends the connection and stops listening."""
        self.ended.set()
        self._transport.close()
        self._forwarder.end()
        for thread in self._threads:
            thread.join()
        self._resources.close()

    def _forward_failed(self, port: int, error: BaseException | None) -> None:
        if port != self._settings.service_port:
            return
        if isinstance(error, paramiko.ChannelException) and error.code == ADMINISTRATIVELY_PROHIBITED:
            expired = self._is_password_expired()
            self.forward_error = refusals.password_expired(self._settings) if expired else forward_refused(port)
        else:
            self.forward_error = nothing_listens(port)

    def _is_password_expired(self) -> bool:
        """Returns whether nothing is allowed but to change the password: sshd says so to who runs a command."""
        with suppress(paramiko.SSHException, OSError, EOFError), self._transport.open_session() as channel:
            channel.settimeout(self._settings.connect_timeout)
            channel.exec_command("true")
            said = channel.makefile_stderr().read(READ_BYTES)
            return bool(refusals.PASSWORD_EXPIRED.search(said.decode(errors="replace")))
        return False

    def _make_far_side_prompt(self) -> None:
        """Runs a command that does nothing: only then does sshd turn Nagle's algorithm off on its side.

        Takes two round trips, for which an arm that stands still need not wait.
        """
        try:
            with self._transport.open_session(timeout=self._settings.connect_timeout) as channel:
                channel.exec_command("true")
        except (paramiko.SSHException, OSError, EOFError):
            if self._transport.is_active():  # else it is the link that is gone
                self._warn(
                    "The SSH server takes no commands from this account, so it keeps waiting to fill its packets: "
                    "expect up to 44 ms more per round trip."
                )

    def _ping(self) -> None:
        """Has the far side answer every second. Any answer will do, a refusal as well."""
        while not self.ended.wait(PING_INTERVAL) and self._transport.is_active():
            # Blocks until there is an answer or the connection ends, which the watch sees to
            with suppress(paramiko.SSHException, OSError):
                self._transport.global_request("keepalive@openssh.com", wait=True)
                self._heard = time.monotonic()

    def _watch(self) -> None:
        """Waits for the end of the connection and brings it about when it is silent."""
        received_before = 0
        while True:
            self._transport.join(WATCH_INTERVAL)
            if not self._transport.is_alive():
                break
            # Whatever comes in is a sign of life. On a slow uplink the answer to a ping waits behind a large request
            received = self.traffic()[1]
            if received != received_before:
                received_before, self._heard = received, time.monotonic()
            if time.monotonic() - self._heard > self._settings.silence_timeout:
                self._silent = True
                self._transport.close()
                break
        self.ended.set()


class _Transport(paramiko.Transport):  # type: ignore[misc]
    """Remembers what the far side said before its version and when it left."""

    _preferred_ciphers = CIPHERS + tuple(
        cipher for cipher in paramiko.Transport._preferred_ciphers if cipher not in CIPHERS and "cbc" not in cipher
    )
    _channel_handler_table = {**paramiko.Transport._channel_handler_table, MSG_CHANNEL_CLOSE: answer_goodbye}  # noqa: RUF012
    greeting = ""
    goodbye = ""

    def _log(self, level: int, message: Any, *arguments: object) -> None:
        # Nobody else is told
        if isinstance(message, str) and message.startswith("Banner: ") and not self.greeting:
            self.greeting = message.removeprefix("Banner: ")
        super()._log(level, message, *arguments)

    def _parse_disconnect(self, message: paramiko.Message) -> None:
        message.get_int()
        self.goodbye = message.get_string().decode(errors="replace")

    def get_exception(self) -> Exception | None:
        """Returns why it ended. paramiko trusts what it is sent to be text: where it is not, anything may come up."""
        error: Exception | None = super().get_exception()
        foreseen = error is None or isinstance(error, paramiko.SSHException | OSError | EOFError)
        return error if foreseen else paramiko.SSHException(f"paramiko does not understand what it is sent: {error}")


def _shake_hands(carrier: Any, hop: Hop, settings: SshSettings) -> _Transport:
    try:
        transport = _Transport(carrier)
    except (paramiko.SSHException, OSError) as error:
        raise TunnelError(Cause.HANDSHAKE, f"{hop.known_as}: {error}") from error
    transport.daemon = True
    transport.banner_timeout = transport.handshake_timeout = settings.connect_timeout
    transport.auth_timeout = transport.channel_timeout = settings.connect_timeout
    return transport


def _check_host_key(transport: _Transport, hop: Hop, route: Route, *, pinned: bool) -> None:
    """Exchanges keys and checks whose they are, before anything else is said."""
    known = {key.key_type for key in route.host_keys.known(hop.known_as)}
    options = transport.get_security_options()
    # Ask for the key that is known: the host may have others as well
    options.key_types = sorted(
        options.key_types, key=lambda name: ("ssh-rsa" if name.startswith("rsa-sha2") else name) not in known
    )
    try:
        transport.start_client(timeout=route.settings.connect_timeout)
        key = transport.get_remote_server_key()  # raises if the time is over and there is none
    except paramiko.IncompatiblePeer as error:
        transport.close()
        raise PermanentTunnelError(
            Cause.HANDSHAKE,
            f"{hop.known_as} and paramiko have no algorithm in common ({error}). Set "
            "LONGARM_EDGE_SSH__BACKEND=openssh, whose ssh may know more of them, or bring the SSH server up to date.",
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        silent = transport.is_active() or isinstance(error.__context__, TimeoutError)
        transport.close()
        if refusals.TURNED_AWAY.search(transport.greeting):
            raise refusals.turned_away(hop.known_as, transport.greeting) from error
        if not (silent or transport.greeting or transport.remote_version):
            raise refusals.hung_up(hop.known_as) from error
        nothing = f"it says nothing for {route.settings.connect_timeout:g} s" if silent else "the connection was closed"
        said = transport.greeting or transport.goodbye or (not silent and str(error)) or nothing
        raise TunnelError(
            Cause.HANDSHAKE,
            f"{hop.known_as} does not complete the SSH handshake ({said}). Check that an SSH server answers there.",
        ) from error
    presented = HostKey(key.get_name(), base64.b64encode(key.asbytes()).decode())
    try:
        route.host_keys.check(hop.known_as, presented, pinned=pinned)
    except TunnelError:
        transport.close()
        raise


def _log_in(transport: _Transport, hop: Hop, settings: SshSettings, *, with_password: bool) -> None:
    refused: list[str] = []
    allowed: list[str] = []

    def attempt(what: str, log_in: Callable[[], object]) -> bool:
        try:
            log_in()
        except paramiko.BadAuthenticationType as error:
            allowed[:] = error.allowed_types
        except (paramiko.SSHException, OSError, EOFError) as error:
            if "timeout" in str(error).lower():
                raise TunnelError(Cause.HANDSHAKE, f"{hop.known_as} does not answer the login.") from error
        if not transport.is_active():
            raise _broken_off(transport, refused)
        if not transport.is_authenticated():
            refused.extend([what] if what else [])
        return bool(transport.is_authenticated())

    # The first question also tells what the server takes
    if attempt("", lambda: transport.auth_none(hop.user)):
        return
    if "publickey" in allowed:
        with keys.offered(settings, hop.identity_files) as offered:
            for key in offered:
                if attempt(f"{key.get_name()} key {key.fingerprint}", partial(transport.auth_publickey, hop.user, key)):
                    return
    password = settings.read_password() if with_password else ""
    conversation = _Conversation(password)
    if "password" in allowed:
        give = partial(transport.auth_password, hop.user, password, fallback=False)
    else:
        give = partial(transport.auth_interactive, hop.user, conversation.answer)
    takes_password = not refusals.BY_PASSWORD.isdisjoint(allowed)
    if password and takes_password and attempt("the password", give):
        return
    if any(map(refusals.PASSWORD_EXPIRED.search, conversation.heard)):
        raise refusals.password_expired(settings)
    advice = refusals.login_advice(allowed, password=bool(password), tried=bool(refused), jump=not with_password)
    raise _refusal(hop, refused, allowed, advice)


class _Conversation:
    """Answers what a server asks: once, with the password. Whoever asks on wants something else, a new password say."""

    def __init__(self, password: str) -> None:
        self.heard: list[str] = []
        self._answers = iter([password])

    def answer(self, title: str, instructions: str, questions: list[tuple[str, bool]]) -> list[str]:
        self.heard += [title, instructions, *(question for question, _ in questions)]
        return [next(self._answers, "") for _ in questions]


def _broken_off(transport: _Transport, refused: list[str]) -> TunnelError:
    """Returns the error for a connection that ended during the login: a refusal only if the far side says so."""
    if TOO_MANY_ATTEMPTS in transport.goodbye:
        return PermanentTunnelError(
            Cause.AUTHENTICATION,
            f"The SSH server ended the login after too many attempts (refused: {', '.join(refused) or 'one'}). "
            "Name the one right key in LONGARM_EDGE_SSH__KEY_FILE and set LONGARM_EDGE_SSH__AGENT=false.",
        )
    return TunnelError(
        Cause.HANDSHAKE, f"The connection ended during the login ({transport.goodbye or 'no reason given'})."
    )


def _refusal(hop: Hop, refused: list[str], allowed: list[str], advice: str) -> PermanentTunnelError:
    """Returns the error for a login that was refused."""
    return PermanentTunnelError(
        Cause.AUTHENTICATION,
        f"{hop.known_as} refuses the login of {hop.user}. Tried: {', '.join(refused) or 'nothing'}. The server takes: "
        f"{', '.join(allowed) or 'unknown'}. {advice}",
    )


def _reach(transport: _Transport, hop: Hop, settings: SshSettings) -> paramiko.Channel:
    """Returns a channel through a jump host to the next one."""
    try:
        return transport.open_channel(
            "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=settings.connect_timeout
        )
    except paramiko.ChannelException as error:
        if error.code == ADMINISTRATIVELY_PROHIBITED:
            raise PermanentTunnelError(
                Cause.FORWARD_REFUSED, f"The jump host refuses to forward to {hop.known_as} ({error})."
            ) from error
        raise TunnelError(Cause.TCP, f"The jump host does not reach {hop.known_as} ({error}).") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise TunnelError(Cause.TCP, f"The jump host does not reach {hop.known_as} ({error}).") from error
