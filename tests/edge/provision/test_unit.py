"""The systemd unit. No systemd runs here: what it makes of the unit is systemd-analyze's word."""

import shutil
import subprocess
from pathlib import Path

import pytest

from longarm_edge.provision.unit import STOP_SECONDS, UNIT_NAME, render
from longarm_service import supervisor


def test_the_unit_says_what_matters() -> None:
    text = render("/home/a/.longarm", scope="system", secret_names=["HF_TOKEN", "B"])
    assert 'ExecStart="/home/a/.longarm/venv/bin/python" -m longarm_service.supervisor "/home/a/.longarm"\n' in text
    assert "RestartPreventExitStatus=3\n" in text
    assert "PassEnvironment=B HF_TOKEN\n" in text
    assert "WantedBy=multi-user.target\n" in text
    assert "WantedBy=default.target\n" in render("/x/y", scope="user", secret_names=[])
    assert "PassEnvironment" not in render("/x/y", scope="user", secret_names=[])


def test_systemd_waits_longer_than_the_supervisor() -> None:
    assert STOP_SECONDS > supervisor.STOP_SECONDS


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("scope", ["user", "system"])
def test_systemd_understands_the_unit(scope: str, tmp_path: Path) -> None:
    """Any output counts: systemd-analyze succeeds on keys that it does not know."""
    directory = tmp_path / "a name with spaces"
    python = directory / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    unit = tmp_path / UNIT_NAME
    unit.write_text(render(str(directory), scope=scope, secret_names=["HF_TOKEN"]))
    found = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
