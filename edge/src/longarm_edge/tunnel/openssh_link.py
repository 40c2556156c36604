"""The tunnel by the system's ssh, for what only it can do; the same settings, messages and host key policy.

ssh -N as everybody uses it costs 44 ms a round trip for larger requests: sshd turns Nagle's algorithm off only once a
command runs. So this one runs a command that waits. It also says when the connection is ready, gives back what it is
sent as a sign of life, and ends, and ssh with it, when our pipe closes.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future

from longarm_edge.tunnel import keys, openssh_command, refusals, sayings, tether
from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.host_keys import HostKey, host_name
from longarm_edge.tunnel.link import Route, dial, forward_refused, nothing_listens, tcp_traffic
from longarm_edge.tunnel.questions import Questions

READY = "LONGARM-TUNNEL-READY"
REMOTE_COMMAND = f"echo {READY}; exec cat"
# ssh's own failures; any other code is the remote command's
SSH_FAILED = 255
# ssh's own question about a file on this machine. Since 8.5 it puts (user@host) before what a server asks
ASKS_PASSPHRASE = re.compile(r"Enter passphrase for key '.*': ")
SESSION_REFUSED = re.compile(r"^channel \d+: open failed|request failed on channel")
# Seconds to learn whether the account runs commands. A shell that takes longer to start, with conda in its profile say,
# holds up nothing: the ports are forwarded by then
SHELL_TIMEOUT = 2.0
# Seconds between two looks whether the link lives
WATCH_INTERVAL = 0.5
# What ssh says in any case: not kept
_NO_NEWS = ("debug1: ", "Transferred: ", "Bytes per second: ")
_OPEN_FAILED = re.compile(r"^channel (\d+): open failed: ([a-z ]+)")
_CHANNEL_FREED = re.compile(r"^debug1: channel (\d+): free: direct-tcpip: listening port \S+ for \S+ port (\d+)")


def connect(route: Route) -> "OpensshLink":
    """Returns an established link, see longarm_edge.tunnel.link.Connect."""
    settings = route.settings
    if shutil.which("ssh") is None:
        raise PermanentTunnelError(
            Cause.CONFIGURATION,
            "There is no ssh on this machine. Install openssh-client, or set LONGARM_EDGE_SSH__BACKEND=paramiko.",
        )
    keys.check(settings)
    # ssh has one limit for silence during a login, which may be slow (PAM, a name server), and after it. So it is given
    # the one for a login, and the link watches over itself
    patience = 3 * settings.connect_timeout
    started = time.monotonic()
    try:
        return _connect(route, patience, with_command=True)
    except _NoShellError:
        route.warn(
            "The SSH server runs no commands for this account, so it keeps waiting to fill its packets: expect up to "
            "44 ms more per round trip. The paramiko backend may do better."
        )
        # Without a command it may be up to ssh to notice silence: soon, and not sooner than this login takes
        patience = max(settings.silence_timeout, 2 * (time.monotonic() - started))
        return _connect(route, patience, with_command=False)


def _connect(route: Route, patience: float, *, with_command: bool) -> "OpensshLink":
    settings = route.settings
    call = _Call(route)
    with Questions({"host-key": call.host_key, "secret": call.secret, "dial": call.dial}) as questions:
        config = questions.directory / "config"
        config.write_text(openssh_command.configuration(settings, questions, patience))
        call.learn(openssh_command.effective(config, settings))
        options = openssh_command.options(route, config, questions, direct=call.direct)
        if with_command:
            arguments = [*options, "--", settings.host, REMOTE_COMMAND]
        else:
            arguments = [*options, "-N", "--", settings.host]
        link = OpensshLink(route, arguments, openssh_command.environment(questions), call)
        try:
            link.wait_ready(READY if with_command else call.logged_in)
        except BaseException:
            link.close()
            # What was refused here is the reason for whatever ssh says about it
            if questions.error is not None:
                raise questions.error from None
            raise
        return link


class _NoShellError(TunnelError):
    """The account can log in and run nothing."""


class _Call:
    """The answers to ssh's questions about one connection."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._password_given = False
        self.process_id: Future[int] = Future()
        self.direct = False
        self.logged_in = ""
        self.connection: socket.socket | None = None

    def learn(self, effective: dict[str, str]) -> None:
        """Takes in what ssh makes of its configuration."""
        self.direct = all(effective.get(name, "none") == "none" for name in ("proxyjump", "proxycommand"))
        # A jump host's ssh says the like of itself
        how = "[" if self.direct else "via proxy"
        self.logged_in = f"Authenticated to {effective.get('hostname', '')} ({how}"

    def host_key(self, occasion: str, given: str, alias: str, port: str, name: str, key_type: str, body: str) -> str:
        """Returns lines of known_hosts: those known beforehand, and at last the one that may be trusted."""
        host_keys = self._route.host_keys
        if occasion == "ORDER":
            # Here, and only here, ssh's name for the host lacks the port and the alias
            trusted = host_keys.known(host_name(name, int(port))) + host_keys.known(alias)
        else:
            key = HostKey(key_type, body)
            host_keys.check(name, key, pinned=given == self._route.settings.host)
            trusted = [key]
        return "".join(f"{name} {key.key_type} {key.body}\n" for key in trusted)

    def secret(self, asker: str, prompt: str) -> str | None:
        """Returns the passphrase, or once the password.

        A server may ask whatever it likes. What it has no say in is which process passes its question on: for a jump
        host that is an ssh of its own, and the target's is the one that we started.

        Raises:
          PermanentTunnelError: The password has expired.
        """
        if ASKS_PASSPHRASE.fullmatch(prompt):
            return self._route.settings.read_passphrase() or None
        if int(asker) != self.process_id.result():
            return None
        if self._password_given:
            # Whoever asks once more wants something else, a new password say
            if refusals.PASSWORD_EXPIRED.search(prompt):
                raise refusals.password_expired(self._route.settings)
            return None
        self._password_given = True
        return self._route.settings.read_password() or None

    def dial(self, host: str, port: str) -> socket.socket:
        """Returns a connection for ssh. Ours stays open beside it, to count bytes."""
        self.hang_up()
        self.connection = dial(host, int(port), self._route.settings)
        return self.connection

    def hang_up(self) -> None:
        """Closes our side of the connection."""
        if self.connection is not None:
            self.connection.close()


class OpensshLink:
    """See longarm_edge.tunnel.link.Link."""

    def __init__(self, route: Route, arguments: list[str], environment: dict[str, str], call: _Call) -> None:
        """Starts ssh."""
        self.ended = threading.Event()
        self.forward_error: TunnelError | None = None
        self._settings = route.settings
        self._call = call
        self._ready = False
        self._silent = False
        self._echo_count = 0
        self._failed: dict[str, str] = {}
        self._lines: deque[str] = deque(maxlen=20)
        self._heard = threading.Condition()
        # Tied to us, in a process group of its own: with it goes what it started itself, for a jump host say
        self._process = subprocess.Popen(  # noqa: S603  # nothing of it comes from the network
            [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), "ssh", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        call.process_id.set_result(self._process.pid)
        self._threads = [
            threading.Thread(target=target, name=f"ssh-{target.__name__.strip('_')}", daemon=True)
            for target in (self._read, self._wait)
        ]
        for thread in self._threads:
            thread.start()
        os.set_blocking(self._stdin, False)

    @property
    def _stdin(self) -> int:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        return self._process.stdin.fileno()

    def wait_ready(self, sign: str) -> None:
        """Returns once ssh has said sign.

        Raises:
          _NoShellError: The login works and the command does not.
          TunnelError: ssh gave up, or said nothing in time.
        """
        # Dialling, shaking hands and logging in
        self._wait_for(self._call.logged_in, 3 * self._settings.connect_timeout)
        if not self._said(self._call.logged_in):
            if self.ended.is_set():
                raise self.loss()
            raise TunnelError(Cause.HANDSHAKE, f"ssh was not logged in in time. It last said: {self._last()}")
        self._wait_for(sign, SHELL_TIMEOUT)
        if not self.ended.is_set():
            self._ready = True
            watch = threading.Thread(target=self._watch, name="ssh-watch", daemon=True)
            watch.start()
            self._threads.append(watch)
        elif self._process.poll() != SSH_FAILED or any(map(SESSION_REFUSED.search, self._lines_so_far())):
            expired = any(map(refusals.PASSWORD_EXPIRED.search, self._lines_so_far()))
            raise self.loss() if expired else _NoShellError(Cause.CLOSED, "The account runs no commands.")
        else:
            raise self.loss()

    def _wait_for(self, sign: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._heard:
            while not self._said(sign) and not self.ended.is_set() and (left := deadline - time.monotonic()) > 0:
                self._heard.wait(left)

    def loss(self) -> TunnelError:
        """Returns why the connection is gone."""
        lines = self._lines_so_far()
        if self._silent or any(re.search(r"Timeout, server .* not responding", line) for line in lines):
            return TunnelError(Cause.SILENT, f"The link gave no sign of life for {self._settings.silence_timeout:g} s.")
        if self._ready:
            return TunnelError(Cause.CLOSED, f"The link was closed by the far side or the network ({self._last()}).")
        return sayings.meaning(lines, self._settings, direct=self._call.direct) or TunnelError(
            Cause.HANDSHAKE, f"The connection ended during the login ({self._last()})."
        )

    def traffic(self) -> tuple[int, int]:
        """Returns the bytes sent and received so far, encryption included; 0 through jump hosts."""
        return tcp_traffic(self._call.connection) if self._call.connection is not None else (0, 0)

    def close(self) -> None:
        """Ends ssh and what it started."""
        self.ended.set()
        self._kill()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._call.hang_up()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _watch(self) -> None:
        """Has the far side give a sign of life, and ends a connection that gives none for too long.

        Whatever comes in is one: on a slow uplink the echo waits behind a large request. Where nothing can be seen to
        come in, through a jump host to an account whose command gives no echo, it is left to ssh.
        """
        signs = 0, 0
        seen_at: float | None = None
        while not self.ended.wait(WATCH_INTERVAL):
            with contextlib.suppress(OSError):
                os.write(self._stdin, b"\n")
            now = time.monotonic()
            if (found := (self._echo_count, self.traffic()[1])) != signs:
                signs, seen_at = found, now
            elif seen_at is not None and now - seen_at > self._settings.silence_timeout:
                self._silent = True
                self._kill()
                break

    def _said(self, what: str) -> bool:
        return any(what in line for line in self._lines_so_far())

    def _last(self) -> str:
        return next(reversed(self._lines_so_far()), "nothing")

    def _lines_so_far(self) -> list[str]:
        with self._heard:
            return list(self._lines)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").strip()
            self._take_note(line)
            self._echo_count += not line
            if not line or (line.startswith(_NO_NEWS) and not refusals.TURNED_AWAY.search(line)):
                continue
            with self._heard:
                self._lines.append(line)
                self._heard.notify_all()

    def _take_note(self, line: str) -> None:
        """Notices forwards that fail. ssh first says which channel and why, and in another line whose it was."""
        if failed := _OPEN_FAILED.search(line):
            self._failed[failed[1]] = failed[2]
        elif freed := _CHANNEL_FREED.search(line):
            # The number is free for another channel, whosever this one was
            reason, port = self._failed.pop(freed[1], ""), int(freed[2])
            if port == self._settings.service_port and reason == "administratively prohibited":
                self.forward_error = forward_refused(port)
            elif port == self._settings.service_port and reason == "connect failed":
                self.forward_error = nothing_listens(port)

    def _wait(self) -> None:
        self._process.wait()
        # Its last words may still be in the pipe
        self._threads[0].join(1)
        self.ended.set()
        with self._heard:
            self._heard.notify_all()
