"""One cell of the table: one peer over one link, run and measured."""

import getpass
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from bench import robot_log
from bench.links import LinkSpec
from bench.network import Network
from bench.peers import Drive, Longarm, Peer, SshEnd, Stock, environment, free_port
from bench.processes import Child, cpu_seconds

SERVER_TIMEOUT = 120.0
FIRST_ACTION_TIMEOUT = 90.0
SETTLING = 1.0
# After this much of the window the outage begins, and so long it is watched after its end
BEFORE_OUTAGE, AFTER_OUTAGE = 4.0, 8.0
AFTER_RESTART = 12.0
POLL = 0.02


class Event(StrEnum):
    """What happens during a cell."""

    NONE = ""
    SILENCE = "link silent for 5 s"
    SHORT_SILENCE = "link silent for 3 s"
    RESTART = "server killed, started again after 5 s"


# How long the link is silent, or the server is not there before it is started again
SECONDS = {Event.SILENCE: 5.0, Event.SHORT_SILENCE: 3.0, Event.RESTART: 5.0}


@dataclass(frozen=True)
class Cell:
    """What to run.

    Attributes:
      peer: Name of the peer.
      link: Between robot and service.
      through_ssh: Whether the peer goes through a tunnel.
      policy: Name of the checkpoint.
      event: What happens on the way.
      variant: How the peer's settings differ from its defaults, for people.
      flags: The same as its flags.
    """

    peer: str
    link: LinkSpec
    through_ssh: bool = False
    policy: str = "emulated"
    event: Event = Event.NONE
    variant: str = ""
    flags: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the peer runs with its defaults, the emulated policy, and nothing happens."""
        return self.event is Event.NONE and not self.variant and self.policy == "emulated"

    @property
    def name(self) -> str:
        """What it is called in messages."""
        way = "through SSH" if self.through_ssh else "direct"
        return ", ".join(filter(None, (self.peer, self.link.name, way, self.policy, self.variant, self.event)))


@dataclass(frozen=True)
class Measured:
    """What came of a cell.

    Attributes:
      events: The robot's log.
      begun, ended: The window, monotonic seconds.
      up_bytes, down_bytes: What crossed the link in the window.
      cpu_seconds: Of the robot's half in the window, tunnel included.
      outage: When the link went silent or the server died, and when the link was back or the server was started again.
      failure: Why there is nothing, empty if there is.
    """

    events: np.ndarray
    begun: float = 0.0
    ended: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    cpu_seconds: float = 0.0
    outage: tuple[float, float] | None = None
    failure: str = ""


class Bench:
    """A network with both servers and an sshd at the service's place. Use as a context manager."""

    def __init__(
        self, network: Network, directory: Path, frames: Path, checkpoints: dict[str, Path], seconds: float
    ) -> None:
        """Starts nothing yet.

        Args:
          network: Made already.
          directory: For logs; absolute.
          frames: The film that cameras show.
          checkpoints: By name.
          seconds: Length of a window.
        """
        self._network = network
        self._directory = directory
        self._frames = frames
        self._checkpoints = checkpoints
        self._seconds = seconds
        self._environment = environment(directory)
        self._peers: dict[str, Peer] = {Longarm.name: Longarm(), Stock.name: Stock()}
        self._servers: dict[str, Child] = {}
        self._sshd_port = free_port()
        self._stack = ExitStack()
        self._runs = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            stack.callback(self._stop_servers)
            self._start_sshd()
            for name in self._peers:
                self._start_server(name)
            for name in self._peers:
                self._await_server(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, cell: Cell) -> Measured:
        """Runs a cell and returns what was measured."""
        self._network.shape(cell.link)
        self._runs += 1
        directory = self._directory / f"{self._runs:02d}"
        directory.mkdir()
        with ExitStack() as stack:
            return self._drive(cell, directory, stack)

    def _drive(self, cell: Cell, directory: Path, stack: ExitStack) -> Measured:
        peer = self._peers[cell.peer]
        host, port = self._network.reach(peer.port)
        ssh = self._ssh_end(directory) if cell.through_ssh else None
        log = directory / "robot.bin"
        checkpoint = self._checkpoints[cell.policy]
        roots = []
        drive = Drive(host, peer.port if ssh else port, ssh, checkpoint, self._frames, log, cell.flags)
        local_port = free_port()
        if tunnel := peer.tunnel(drive, local_port):
            child = self._start([*self._network.at_robot(), *tunnel], directory, "tunnel", stack)
            time.sleep(1.0 + 10 * cell.link.rtt)  # plain ssh does not say when it is ready
            roots.append(child.pid)
            drive = Drive("127.0.0.1", local_port, ssh, checkpoint, self._frames, log, cell.flags)
        client = self._start([*self._network.at_robot(), *peer.client(drive)], directory, "client", stack)
        roots.append(client.pid)
        first = _await_first_action(log, client)
        if first is None:
            return Measured(robot_log.read(log), failure=f"no action: {client.last_words()}")
        _sleep_until(first + SETTLING)
        begun, up, down = time.monotonic(), self._network.uplink_bytes(), self._network.downlink_bytes()
        cpu = cpu_seconds(roots)
        outage = None
        if cell.event is Event.NONE:
            _sleep_until(begun + self._seconds)
        else:
            _sleep_until(begun + BEFORE_OUTAGE)
            outage = self._restart(cell.peer) if cell.event is Event.RESTART else self._silence(SECONDS[cell.event])
        ended = time.monotonic()
        return Measured(
            robot_log.read(log),
            begun,
            ended,
            self._network.uplink_bytes() - up,
            self._network.downlink_bytes() - down,
            cpu_seconds(roots) - cpu,
            outage,
        )

    def _silence(self, seconds: float) -> tuple[float, float]:
        begun = time.monotonic()
        self._network.silence(seconds)
        _sleep_until(begun + seconds + AFTER_OUTAGE)
        return begun, begun + seconds

    def _restart(self, peer: str) -> tuple[float, float]:
        begun = time.monotonic()
        self._servers[peer].kill()
        _sleep_until(begun + SECONDS[Event.RESTART])
        self._start_server(peer)
        self._await_server(peer)
        back = time.monotonic()
        _sleep_until(back + AFTER_RESTART)
        return begun, back

    def _start_sshd(self) -> None:
        directory = self._directory / "sshd"
        directory.mkdir()
        flags = ("sshd", str(directory / "keys"), str(self._sshd_port), *self._network.service_addresses())
        command = [*self._network.at_service(), *_python(*flags)]
        sshd = self._start(command, directory, "sshd", self._stack)
        await_that(lambda: "ready" in sshd.log.read_text(), 20, sshd)

    def _ssh_end(self, directory: Path) -> SshEnd:
        keys = self._directory / "sshd" / "keys"
        host, port = self._network.reach(self._sshd_port)
        kind, body, *_ = (keys / "host_key.pub").read_text().split()
        known_hosts = directory / "known_hosts"
        known_hosts.write_text(f"[{host}]:{port} {kind} {body}\n")
        return SshEnd(host, port, getpass.getuser(), keys / "client_key", known_hosts)

    def _start_server(self, peer: str) -> None:
        directory = self._directory / peer.split()[0].lower()
        directory.mkdir(exist_ok=True)
        checkpoints = list(self._checkpoints.values())
        place = self._network.at_service()
        command = [*place, *self._peers[peer].server(directory, checkpoints, everywhere=bool(place))]
        self._servers[peer] = Child(command, directory / "server.log", directory, self._environment)

    def _await_server(self, peer: str) -> None:
        server = self._servers[peer]
        await_that(lambda: self._peers[peer].is_up(server.started_in), SERVER_TIMEOUT, server)

    def _stop_servers(self) -> None:
        for server in self._servers.values():
            server.stop()

    def _start(self, command: list[str], directory: Path, name: str, stack: ExitStack) -> Child:
        child = Child(command, directory / f"{name}.log", directory, self._environment)
        stack.callback(child.stop)
        return child


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench.launch", *arguments]


def await_that(condition: Callable[[], bool], timeout: float, child: Child) -> None:
    """Returns when condition holds. Raises TimeoutError with child's last words if it ends or takes too long."""
    deadline = time.monotonic() + timeout
    while not condition():
        if not child.running or time.monotonic() > deadline:
            raise TimeoutError(f"{child.log} did not get ready within {timeout:g} s:\n{child.last_words()}")
        time.sleep(POLL)


def _await_first_action(log: Path, client: Child) -> float | None:
    """Returns when the first command came, None if it does not."""
    deadline = time.monotonic() + FIRST_ACTION_TIMEOUT
    while time.monotonic() < deadline and client.running:
        events = robot_log.read(log)
        commands = events[events["kind"] == robot_log.COMMANDED]
        if len(commands):
            return float(commands["begun"][0])
        time.sleep(5 * POLL)
    return None


def _sleep_until(instant: float) -> None:
    time.sleep(max(0.0, instant - time.monotonic()))
