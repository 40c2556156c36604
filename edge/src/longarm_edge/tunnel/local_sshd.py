"""A private OpenSSH server on the loopback, with keys of its own: for the demo, the tests and the benchmark."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longarm_edge.tunnel.settings import SshSettings
from longarm_wire.settings import environment_for_others

START_TIMEOUT = 10.0


class NoSshdError(Exception):
    """There is no OpenSSH server program on this machine."""


def find_sshd() -> str:
    """Returns the path of sshd. Raises NoSshdError."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None or not all(map(shutil.which, ("ssh-keygen", "ps"))):
        raise NoSshdError(
            "Expected sshd, ssh-keygen and ps on this machine: apt-get install openssh-server openssh-client procps"
        )
    return found


def make_key(file: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    """Makes a key pair and returns the private key's path."""
    size = ("-b", "2048") if kind == "rsa" else ()  # larger ones take seconds to make
    _run("ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-C", "longarm", "-f", str(file))
    return file


@dataclass
class LocalSshd:
    """An sshd that lets the current user in by key. Use as a context manager.

    Attributes:
      directory: Where its files go; made if need be.
      options: Further lines for sshd_config. They go before the defaults, so they win.
      port: Where it listens; 0 takes a free port.
    """

    directory: Path
    options: Sequence[str] = ()
    port: int = 0
    user: str = field(default_factory=getpass.getuser)
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        """Makes the keys.

        Raises:
          NoSshdError: There is no sshd.
        """
        self._program = find_sshd()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.host_key = self.directory / "host_key"
        self.client_key = self.directory / "client_key"
        for key in (self.host_key, self.client_key):
            if not key.exists():
                make_key(key)
        self.authorized_keys = self.directory / "authorized_keys"
        self.authorized_keys.write_text(self.client_key.with_suffix(".pub").read_text())
        self.log = self.directory / "sshd.log"
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]

    @property
    def known_hosts(self) -> str:
        """The line for known_hosts."""
        kind, body, *_ = self.host_key.with_suffix(".pub").read_text().split()
        return f"[127.0.0.1]:{self.port} {kind} {body}\n"

    def settings(self, **more: Any) -> SshSettings:
        """Returns the settings of a tunnel through it, with its key known, and more on top."""
        known_hosts = self.directory / "known_hosts"
        known_hosts.write_text(self.known_hosts)
        own = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "key_file": self.client_key,
            "agent": False,
            "config_file": None,
            "known_hosts_file": known_hosts,
        }
        return SshSettings(**{**own, **more})

    def start(self) -> None:
        """Begins to listen.

        Raises:
          TimeoutError: It did not, with its log.
        """
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks its unprivileged part in
        config = self.directory / "sshd_config"
        config.write_text(
            "\n".join(
                [
                    "MaxStartups 100",  # the one option of which the last line counts
                    *self.options,
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.host_key}",
                    f"AuthorizedKeysFile {self.authorized_keys}",
                    "PidFile none",
                    "UsePAM no",
                    "StrictModes no",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "PermitRootLogin yes",
                    "PrintMotd no",
                    "SetEnv SHLVL=2",  # bash would run the user's .bashrc, which is no business of a test
                    "LogLevel VERBOSE",
                    "",
                ]
            )
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # the arguments are ours
                [self._program, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment_for_others(),
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"sshd does not listen on port {self.port}: {self.log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Kills it with every connection it has, as a machine that goes down would. A second stop does nothing."""
        if self._process is None:
            return
        _kill(self.process_ids())
        self._process.wait()
        self._process = None

    def drop_connections(self) -> None:
        """Kills every connection and goes on listening."""
        _kill(self.process_ids()[1:])

    def process_ids(self) -> list[int]:
        """Returns the ids of its processes, the one that listens first."""
        return [] if self._process is None else [self._process.pid, *descendants(self._process.pid)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _kill(process_ids: list[int]) -> None:
    for process_id in process_ids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Returns the ids of the processes below one."""
    children: dict[int, list[int]] = {}
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE, text=True) as ps:  # noqa: S607
        listed = ps.communicate()[0].splitlines()
    for line in listed:
        process_id, parent = map(int, line.split())
        if process_id != ps.pid:
            children.setdefault(parent, []).append(process_id)
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
