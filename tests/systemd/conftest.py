"""Machines with a real systemd: containers in which it is PID 1, with this checkout and its environment mounted."""

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "systemd"
PLUGINS = ROOT / "tests" / "plugins"
IMAGE = "longarm-test-systemd"
# What a process in the container needs of this machine: code, packages, the interpreter
MOUNTS = sorted({ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()})
# As in docs: systemd needs these in a container, and no more
RUN_FLAGS = (
    *("--cap-add", "SYS_ADMIN", "--cgroupns=host", "--security-opt", "seccomp=unconfined"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp"),
    *("--volume", "/sys/fs/cgroup:/sys/fs/cgroup:ro"),
)
# The units hide home directories and have a /tmp of their own, where a checkout may lie
VISIBLE = f"[Service]\nProtectHome=tmpfs\nBindReadOnlyPaths={' '.join(map(str, MOUNTS))}\n"
PATIENCE_SECONDS = 90.0


def docker(*arguments: str, check: bool = True, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=timeout)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="session")
def image() -> str:
    """Returns the image of a machine with systemd."""
    if shutil.which("docker") is None or docker("info", check=False).returncode != 0:
        pytest.skip("no Docker engine answers: the units run under a systemd in a container")
    docker("build", "--quiet", "--tag", IMAGE, str(Path(__file__).parent))
    return IMAGE


class Machine:
    """A container in which systemd is PID 1."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, check: bool = True, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command as root, in the checkout's directory."""
        variables = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
        return docker("exec", "--workdir", str(ROOT), *variables, self.name, *command, check=check)

    def shell(self, script: str) -> str:
        return self.run("bash", "-ec", script).stdout.strip()

    def write(self, path: str, text: str) -> None:
        done = subprocess.run(
            ["docker", "exec", "--interactive", self.name, "sh", "-c", f"mkdir -p $(dirname {path}) && cat >{path}"],
            input=text,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def show(self, unit: str, name: str) -> str:
        """Returns a property of a unit."""
        return self.run("systemctl", "show", unit, "--property", name, "--value").stdout.strip()

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit, check=False).stdout

    def until(self, condition: Callable[[], bool], what: str, unit: str) -> None:
        """Returns when condition holds; fails with the unit's journal if it does not in time."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s: {what}\n{self.journal(unit)}"
            time.sleep(0.3)


@contextmanager
def booted(image: str, *flags: str) -> Iterator[Machine]:
    name = f"longarm-systemd-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    mounts = [word for path in MOUNTS for word in ("--volume", f"{path}:{path}:ro")]
    docker("run", "--detach", "--name", name, *RUN_FLAGS, *mounts, *flags, image)
    machine = Machine(name)
    try:
        machine.until(
            lambda: machine.run("systemctl", "is-system-running", check=False).stdout.strip() == "running",
            "systemd is up",
            "init.scope",
        )
        # A checkout may lie in a home directory: what Docker made on the way to it is for root alone
        parents = {parent for mount in MOUNTS for parent in mount.parents}
        made = {path for path in parents if not any(path.is_relative_to(mount) for mount in MOUNTS)}
        machine.run("chmod", "o+x", *map(str, made))
        yield machine
    finally:
        docker("rm", "--force", "--volumes", name, check=False)


def install_service(machine: Machine) -> None:
    """Installs the service with the policy in /srv/policy, not started."""
    machine.run("deploy/systemd/install", "service", "--venv", sys.prefix)
    machine.write("/etc/systemd/system/longarm-service.service.d/test.conf", VISIBLE)
    settings = "LONGARM_SERVICE_PRELOAD=/srv/policy\nLONGARM_SERVICE_TORCH_THREADS=1\nHF_HUB_OFFLINE=1\n"
    machine.write("/etc/longarm/service.env", settings)
    machine.run("systemctl", "daemon-reload")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Returns a small ACT policy with random weights, which any user can read."""
    directory = tmp_path_factory.mktemp("policy") / "act"
    command = shutil.which("longarm-sim-checkpoint", path=str(Path(sys.executable).parent))
    assert command is not None
    subprocess.run([command, str(directory)], check=True, capture_output=True)
    for path in (directory, *directory.iterdir()):
        path.chmod(0o755)
    return directory
