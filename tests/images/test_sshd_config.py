"""The configuration of the server image's sshd, with the sshd of this machine."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "images" / "server" / "sshd_config"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: apt install openssh-server)")
PATIENCE_SECONDS = 20.0


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Where an sshd with this configuration listens."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(key)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    command = [str(SSHD), "-D", "-e", "-f", str(CONFIG), f"-oPort={number}", f"-oHostKey={key}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as sshd:
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            with ExitStack() as kept:
                while not greeted(number, "127.0.0.9", kept):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield number
        finally:
            sshd.terminate()


def greeted(port: int, source: str, kept: ExitStack) -> bool:
    """Connects from a source, says nothing, and returns whether sshd greets. The connection is kept."""
    try:
        connection = kept.enter_context(
            socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS, source_address=(source, 0))
        )
        return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def test_who_says_nothing_keeps_no_robot_out(port: int) -> None:
    """One address may have five connections that did not log in, of the ten from which on sshd drops any."""
    with ExitStack() as kept:
        answers = [greeted(port, "127.0.0.2", kept) for _ in range(30)]
        assert answers == [True] * 5 + [False] * 25
        assert all(greeted(port, f"127.0.0.{robot}", kept) for robot in (3, 4, 5))
