"""The two peers: how each one's halves are started, directly or through an SSH tunnel."""

import os
import shutil
import socket
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint import CHUNK_SIZE
from bench.configuration_emulated import POLICY_TYPE

ROOT = Path(__file__).resolve().parents[1]
FPS = 30
# One thread of arithmetic each, so that the policy leaves a core to the robot on a machine with two
THREADS = "1"


@dataclass(frozen=True)
class SshEnd:
    """The private sshd at the service's place, as the robot reaches it."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path


@dataclass(frozen=True)
class Drive:
    """What a robot's half needs to know.

    Attributes:
      host, port: Where the server answers; at the service's loopback with ssh.
      ssh: The sshd to go through, None for none.
      checkpoint: The policy.
      frames: The film that the cameras show.
      log: Where the robot logs.
      extra: Further flags of the peer's own.
    """

    host: str
    port: int
    ssh: SshEnd | None
    checkpoint: Path
    frames: Path
    log: Path
    extra: tuple[str, ...] = ()


class Peer(ABC):
    """One of the two systems that are compared.

    Attributes:
      name: For people.
      port: Of its server, at the service's place.
    """

    name: str
    port: int

    @abstractmethod
    def server(self, directory: Path, checkpoints: list[Path], *, everywhere: bool) -> list[str]:
        """Returns the command of its server.

        Args:
          directory: Where it may write.
          checkpoints: What it will be asked for.
          everywhere: Whether to listen on all addresses of its place, not only on loopback.
        """

    @abstractmethod
    def is_up(self, directory: Path) -> bool:
        """Returns whether the server that was started with this directory listens."""

    @abstractmethod
    def client(self, drive: Drive) -> list[str]:
        """Returns the command of the robot's half."""

    @abstractmethod
    def tunnel(self, drive: Drive, local_port: int) -> list[str]:
        """Returns the command of a tunnel of its own beside the robot's half, empty if the half brings it."""


class Longarm(Peer):
    """longarm-service and longarm-edge, with their defaults."""

    name = "Longarm"

    def __init__(self) -> None:
        """Takes free ports for its service and its metrics."""
        self.port, self._metrics_port = free_port(), free_port()

    def server(self, directory: Path, checkpoints: list[Path], *, everywhere: bool) -> list[str]:
        """See Peer."""
        self._announce(directory).unlink(missing_ok=True)
        return _launch(
            "service",
            f"--host={'0.0.0.0' if everywhere else '127.0.0.1'}",
            f"--port={self.port}",
            f"--metrics_port={self._metrics_port}",
            f"--announce={self._announce(directory)}",
            f"--preload={','.join(map(str, checkpoints))}",
        )

    def is_up(self, directory: Path) -> bool:
        """See Peer."""
        return self._announce(directory).is_file()

    def client(self, drive: Drive) -> list[str]:
        """See Peer."""
        ssh = drive.ssh
        through = (
            [f"--server_address={drive.host}:{drive.port}"]
            if ssh is None
            else [
                f"--ssh.host={ssh.host}",
                f"--ssh.port={ssh.port}",
                f"--ssh.user={ssh.user}",
                f"--ssh.key_file={ssh.key}",
                f"--ssh.known_hosts_file={ssh.known_hosts}",
                "--ssh.agent=false",
                f"--ssh.service_port={drive.port}",
                f"--ssh.metrics_port={self._metrics_port}",
            ]
        )
        return _launch(
            "edge",
            *through,
            f"--pretrained_name_or_path={drive.checkpoint}",
            f"--fps={FPS}",
            "--metrics_port=0",
            *_robot(drive),
            *drive.extra,
        )

    def tunnel(self, drive: Drive, local_port: int) -> list[str]:  # noqa: ARG002
        """See Peer. The edge opens its own."""
        return []

    @staticmethod
    def _announce(directory: Path) -> Path:
        return directory / "service.json"


class Stock(Peer):
    """LeRobot's policy_server and robot_client as installed, with their defaults."""

    name = "LeRobot async"

    def __init__(self) -> None:
        """Takes a free port for its server."""
        self.port = free_port()

    def server(self, directory: Path, checkpoints: list[Path], *, everywhere: bool) -> list[str]:  # noqa: ARG002
        """See Peer. It loads what a client asks for, when it asks."""
        return _launch(
            "stock-server", f"--host={'0.0.0.0' if everywhere else '127.0.0.1'}", f"--port={self.port}", f"--fps={FPS}"
        )

    def is_up(self, directory: Path) -> bool:
        """See Peer."""
        log = directory / "server.log"
        return log.is_file() and "PolicyServer started on" in log.read_text(errors="replace")

    def client(self, drive: Drive) -> list[str]:
        """See Peer."""
        return _launch(
            "stock-client",
            f"--server_address={drive.host}:{drive.port}",
            f"--policy_type={POLICY_TYPE}",
            f"--pretrained_name_or_path={drive.checkpoint}",
            f"--actions_per_chunk={CHUNK_SIZE}",
            f"--fps={FPS}",
            *_robot(drive),
            *drive.extra,
        )

    def tunnel(self, drive: Drive, local_port: int) -> list[str]:
        """See Peer. The tunnel that its users make by hand."""
        if drive.ssh is None:
            return []
        return [
            "ssh", "-N", "-F", "none", "-o", f"UserKnownHostsFile={drive.ssh.known_hosts}",
            "-i", str(drive.ssh.key), "-p", str(drive.ssh.port),
            "-L", f"127.0.0.1:{local_port}:127.0.0.1:{drive.port}", f"{drive.ssh.user}@{drive.ssh.host}",
        ]  # fmt: skip


def environment(directory: Path) -> dict[str, str]:
    """Returns what peers find in their environment: nothing of ours, no network, one thread of arithmetic."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("LONGARM_", "HF_", "OMP_", "MKL_"))}
    return own | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(directory / "hf"),
        "OMP_NUM_THREADS": THREADS,
        "MKL_NUM_THREADS": THREADS,
    }


def ssh_available() -> bool:
    """Returns whether there are an SSH client and a server to measure tunnels with."""
    return bool(shutil.which("ssh") and shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin"))


def free_port() -> int:
    """Returns a port on which nothing listens, here or in a new namespace."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _robot(drive: Drive) -> list[str]:
    return ["--robot.type=longarm_bench", f"--robot.frames={drive.frames}", f"--robot.log={drive.log}"]


def _launch(program: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "bench.launch", program, *flags]
