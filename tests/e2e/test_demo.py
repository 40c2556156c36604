"""The demo as `make demo` runs it: a real LeRobot policy, the simulated arm, two processes, real gRPC."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from longarm_edge.tunnel.local_sshd import NoSshdError, find_sshd


@pytest.mark.timeout(240)
@pytest.mark.parametrize("command", ["demo", "demo-ssh"])
def test_the_demo_is_healthy_and_leaves_its_pictures(tmp_path: Path, command: str) -> None:
    if command == "demo-ssh":
        try:
            find_sshd()
        except NoSshdError as reason:
            pytest.skip(str(reason))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LONGARM_")}
    done = subprocess.run(
        [sys.executable, "-m", "longarm_edge", command, "--duration=6"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "healthy" in done.stderr
    assert "inference latency" in done.stderr
    with Image.open(tmp_path / "out/demo/cameras.png") as cameras:
        assert cameras.size == (640, 240)
    with Image.open(tmp_path / "out/demo/run.png") as picture:
        assert picture.width > 600
