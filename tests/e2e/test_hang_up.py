"""A terminal that goes away under a run: a window that is closed, a login that ends."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from longarm_wire import exit_codes
from tests.e2e.conftest import RunningService, Script, recording_arm_environment, recording_arm_script, until


@pytest.fixture
def script() -> Script:
    return recording_arm_script()


def drain(terminal: int) -> None:
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        return


def test_the_arm_is_left_by_rule(tmp_path: Path, service: RunningService) -> None:
    """The hang-up reaches the run twice, from the kernel and from the shell, and whatever it prints fails."""
    rule = {"LONGARM_EDGE_SAFETY__ON_STOP": "rest", "LONGARM_EDGE_SAFETY__REST_SECONDS": "2"}
    near, far = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "longarm_edge.cli", "run"],
        env=recording_arm_environment(tmp_path, service, **rule, TERM="xterm"),
        cwd=tmp_path,
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(far)
    log = tmp_path / "arm.log"

    def events() -> list[dict[str, object]]:
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    try:
        reader = threading.Thread(target=drain, args=(near,), daemon=True)
        reader.start()
        until(lambda: len(events()) > 60, "streaming", 60)
        before = len(events())
        run.send_signal(signal.SIGHUP)
        os.close(near)
        code = run.wait(30)
    finally:
        run.kill()
        run.wait()
    commands = [event for event in events() if event["event"] == "command"]
    assert len(commands) > before + 30, "the way back takes two seconds"
    assert events()[-1]["event"] == "disconnect"
    assert code == exit_codes.DONE
