"""Ctrl-C while something goes on with the far side: the process ends soon and in good order, whatever it is doing."""

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.edge.provision.conftest import Account, Operator, SlowLink, machine_flags, until

from longarm_edge.provision.aside import run_aside
from longarm_edge.tunnel import SshSettings
from longarm_wire import exit_codes

# Generous: the machine may be busy. A process that hangs does so for ever
END_TIMEOUT = 20.0
# Seconds after the upload began
MOMENTS = (0.0, 0.01, 0.03, 0.11, 0.23, 0.37, 0.51, 1.03)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    directory = tmp_path / "policy"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(bytes(30_000_000))
    return directory


def interrupted(command: list[str], words: str, pause: float = 0.0, stdin: int | None = None) -> tuple[int | None, str]:
    """Runs longarm-edge, presses Ctrl-C some seconds after it said words, and returns its exit code and what it said.

    The exit code is None if it does not end.
    """
    said = ""
    with subprocess.Popen(
        [sys.executable, "-m", "longarm_edge", *command], stdin=stdin, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        while words not in said:
            piece = os.read(process.stderr.fileno(), 4096)
            assert piece, said
            said += piece.decode()
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        try:
            rest = process.communicate(timeout=END_TIMEOUT)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            return None, said
        return process.returncode, said + rest.decode()


def test_an_upload_can_be_interrupted_at_any_moment(
    slow_link: SlowLink, far_python: Path, account: Account, policy: Path
) -> None:
    """Many of them fall into paramiko, which once kept a lock for ever that whoever closes the connection needs."""
    up = ["up", *machine_flags(slow_link.ssh, account, far_python), f"--policy={policy}"]
    directories = [f"interrupted-{number}" for number in range(len(MOMENTS))]

    def end(directory: str, pause: float) -> tuple[int | None, str]:
        return interrupted([*up, f"--far.directory=~/{directory}"], "sending the policy", pause)

    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(end, directories, MOMENTS))
    assert [code for code, _ in ends] == [exit_codes.INTERRUPTED] * len(MOMENTS)
    assert not any("Traceback" in said or "broke" in said for _, said in ends)
    until(lambda: not list(account.processes()), "the end of what ran there")
    subprocess.run(["rm", "-rf", *(account.home / directory for directory in directories)], check=True)


def test_somebody_who_is_asked_can_leave(ssh: SshSettings, far_python: Path, account: Account, tmp_path: Path) -> None:
    unknown = ssh.model_copy(update={"known_hosts_file": tmp_path / "none"})
    ours, theirs = pty.openpty()
    code, said = interrupted(["status", *machine_flags(unknown, account, far_python)], "(yes/no)", stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert code == exit_codes.INTERRUPTED
    assert "Traceback" not in said
    assert not (tmp_path / "none").exists()


def test_a_server_that_says_nothing_is_not_waited_for(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longarm_edge.provision.aside.GRACE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        operator.ssh = operator.ssh.model_copy(update={"port": silent.getsockname()[1], "connect_timeout": 60.0})

        accepted: list[socket.socket] = []

        def press() -> None:
            accepted.append(silent.accept()[0])
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            operator.manage("status")
        assert time.monotonic() - began < END_TIMEOUT
        accepted[0].close()


def test_work_aside_returns_and_raises_as_it_would_here() -> None:
    assert run_aside(lambda _: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_aside(lambda _: 1 // 0)
    assert run_aside(lambda aside: aside.in_front(signal.getsignal)(signal.SIGTERM)) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_heard_even_when_the_work_is_done() -> None:
    with pytest.raises(KeyboardInterrupt):
        run_aside(lambda _: os.kill(os.getpid(), signal.SIGINT))
