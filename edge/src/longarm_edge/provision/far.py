"""The far side: shell scripts and files over one SSH connection."""

import getpass
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import paramiko  # type: ignore[import-untyped]

from longarm_edge.provision.errors import ConnectionLostError, FarCommandError, ProvisionError
from longarm_edge.provision.scripts import HOLD

OnLine = Callable[[str], None]

MASK = "**********"
OPEN_TIMEOUT = 30.0
READ_BYTES = 32768
BREAK_SECONDS = 1.0
# Whoever holds a directory shows that often that it is alive. Without that for so long, it is not: on a slow link a
# sign of life waits behind two megabytes of an upload
BEAT_SECONDS = 5.0
LEASE_SECONDS = 60
# Somebody else's installation may take hours
HOLD_TIMEOUT = 24 * 3600.0
HELD = "longarm: held"
# Ends what the script started when the connection ends: sshd alone would let it go on, with nobody to see it.
# What leaves the session (setsid) stays. The script has standard input to itself, empty. It is one command, so that
# the shell has read all of it before anything else reads standard input. Each line of that names a file that shows, by
# its age, how long ago this side was alive
WRAPPER = """\
{{
exec 2>&1 3<&0
{{ while read -r held; do touch -c "$held"; done <&3; kill -TERM 0; }} >/dev/null 2>&1 &
watcher=$!
(
set -eu
{script}
) </dev/null 3<&-
code=$?
# Waited for: in a container nobody else may ever do so
exec >/dev/null 2>&1
kill "$watcher"
wait "$watcher"
exit "$code"
}}
"""


class Far(Protocol):
    """The far side as the rest of this package uses it."""

    def run(
        self,
        script: str,
        variables: Mapping[str, str] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
        timeout: float = 120.0,
    ) -> list[str]:
        """Runs a POSIX shell script and returns the lines of its output, errors included.

        Nothing of it, and none of the values, is on a command line there. If the connection ends, so does the script.

        Args:
          script: Stops at the first command that fails.
          variables: The script's own, by name.
          environment: Variables that the commands of the script see too.
          on_line: Called with each line as it comes.
          timeout: Seconds that it may take.

        Raises:
          FarCommandError: It ended with an error.
          ConnectionLostError: The connection broke.
        """

    def hold(self, directory: str, on_line: OnLine) -> AbstractContextManager[None]:
        """Returns a context within which nobody else's hold works in directory, which is made if it is not there.

        Waits for as long as somebody else does.

        Args:
          directory: Longarm's.
          on_line: Called with who that is.

        Raises:
          ProvisionError: The directory cannot be made or written.
          ConnectionLostError: The connection broke.
        """

    def sftp(self) -> paramiko.SFTPClient:
        """Returns a channel for files, to be closed by the caller.

        Raises:
          ProvisionError: The SSH server has none.
          ConnectionLostError: The connection broke.
        """


class SshFar:
    """The far side over a connection that is logged in."""

    def __init__(self, transport: paramiko.Transport, secrets: tuple[str, ...] = ()) -> None:
        """Takes a connection, which stays the caller's to close.

        Args:
          transport: The connection.
          secrets: What must not appear in any line.
        """
        self._transport = transport
        self._secrets = secrets

    def run(
        self,
        script: str,
        variables: Mapping[str, str] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
        timeout: float = 120.0,
    ) -> list[str]:
        """See Far.run."""
        lines = []
        with self._started(_script(script, variables or {}, environment or {})) as channel:
            for line in _lines(channel, time.monotonic() + timeout):
                shown = self._without_secrets(line)
                lines.append(shown)
                if on_line is not None:
                    on_line(shown)
            code = self._exit_code(channel)
        if code != 0:
            raise FarCommandError(code, lines)
        return lines

    @contextmanager
    def hold(self, directory: str, on_line: OnLine) -> Iterator[None]:
        """See Far.hold."""
        variables = {"directory": directory, "who": _who(), "held": HELD, "lease": str(LEASE_SECONDS)}
        done = threading.Event()
        lines = []
        with self._started(_script(HOLD, variables)) as channel:
            for line in _lines(channel, time.monotonic() + HOLD_TIMEOUT):
                if line == HELD:
                    break
                lines.append(line)
                on_line(line)
            else:
                self._exit_code(channel)  # raises if the connection broke
                raise ProvisionError(f"{directory} cannot be written on the far side:\n" + "\n".join(lines[-12:]))
            channel.settimeout(None)

            def show_life() -> None:
                # A connection that is gone is noticed by whoever uses it
                with suppress(paramiko.SSHException, EOFError, OSError):
                    while not done.wait(BEAT_SECONDS):
                        channel.sendall(f"{directory}/.longarm\n".encode())

            threading.Thread(target=show_life, name="hold", daemon=True).start()
            try:
                yield
            finally:
                done.set()

    def sftp(self) -> paramiko.SFTPClient:
        """See Far.sftp."""
        with lost_connections_named():
            try:
                client = paramiko.SFTPClient.from_transport(self._transport)
            except (paramiko.SSHException, EOFError) as error:
                if not self._transport.is_active() or isinstance(error, paramiko.ChannelException):
                    raise
                raise ProvisionError(
                    "The SSH server has no SFTP, which files travel over. Enable it in its sshd_config: Subsystem sftp "
                    "internal-sftp. Some providers offer a second, full SSH address beside a restricted one: use that."
                ) from error
        assert client is not None  # noqa: S101
        client.get_channel().settimeout(OPEN_TIMEOUT)
        return client

    @contextmanager
    def _started(self, text: str) -> Iterator[paramiko.Channel]:
        """Gives a channel on which a shell carries out text, and ends when the channel does."""
        with lost_connections_named():
            channel = self._transport.open_session(timeout=OPEN_TIMEOUT)
        try:
            with lost_connections_named():
                # Whatever the login shell is, sh reads the rest. Standard input stays open as the sign of life
                channel.exec_command("sh -s")
                try:
                    channel.sendall(text.encode())
                except OSError:
                    # What is no shell may have ended before it was told anything: what it said is still to be read
                    self._transport.join(BREAK_SECONDS)
                    if not self._transport.is_active():
                        raise
            yield channel
        finally:
            with lost_connections_named():
                channel.close()

    def _exit_code(self, channel: paramiko.Channel) -> int:
        code: int = channel.recv_exit_status()
        if code == -1:
            # Without one it was killed; or the connection breaks, which ends the channels a moment before itself
            self._transport.join(BREAK_SECONDS)
            if not self._transport.is_active():
                raise ConnectionLostError("The SSH connection broke while a command ran on the far side.")
        return code

    def _without_secrets(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, MASK)
        return line


def _who() -> str:
    """Returns who works at this machine, as others may know them."""
    # A container's user may have no name
    with suppress(KeyError, OSError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return socket.gethostname()


def _script(script: str, variables: Mapping[str, str], environment: Mapping[str, str] | None = None) -> str:
    """Returns the text of a script with its variables, as the far shell reads it."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    assignments += [f"export {name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return WRAPPER.format(script="\n".join([*assignments, script]))


def _lines(channel: paramiko.Channel, deadline: float) -> Iterator[str]:
    """Yields lines until the output ends."""
    rest = b""
    while True:
        # A while at a time, so that Ctrl-C is heard and the deadline kept
        channel.settimeout(0.5)
        with lost_connections_named():
            try:
                piece = channel.recv(READ_BYTES)
            except TimeoutError:
                piece = None
        if piece is None:
            if time.monotonic() > deadline:
                raise ProvisionError("A command on the far side took too long and was stopped.")
            continue
        if not piece:
            break
        # Progress bars go back with \r
        *whole, rest = re.split(rb"\r\n|\n|\r", rest + piece)
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


@contextmanager
def lost_connections_named() -> Iterator[None]:
    """Turns the many ways in which paramiko reports a broken connection into ConnectionLostError."""
    try:
        yield
    except paramiko.ChannelException as error:
        raise ProvisionError(
            f"The SSH server opens no further session over one connection ({error.text}), and three are needed: set "
            "MaxSessions in its sshd_config to 3 or more (10 is the default)."
        ) from error
    except (paramiko.SSHException, EOFError, ConnectionError, TimeoutError) as error:
        raise ConnectionLostError(f"The SSH connection broke ({str(error) or 'closed or silent'}).") from error
    except OSError as error:
        # "Socket is closed" has no number; others speak of files
        if error.errno is None:
            raise ConnectionLostError(f"The SSH connection broke ({error}).") from error
        raise
