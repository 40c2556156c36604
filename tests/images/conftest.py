"""The images, built once, and a way to run Docker. Without an engine these tests are skipped, and say so."""

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# No capability, no new privileges, nothing writable but what is mounted: as the compose files run them
CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
Done = subprocess.CompletedProcess[str]
# Fetching and building everything on a slow machine
BUILD_SECONDS = 1500


def docker(*arguments: str, check: bool = True, timeout: float = 120, **more: Any) -> Done:
    """Runs docker and returns what it said; fails the test with it if it must succeed and does not."""
    done = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **more,
    )
    if check and done.returncode != 0:
        pytest.fail(f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def run(image: str, *arguments: str, options: Sequence[str] = ()) -> Done:
    """Runs a confined container to its end and returns what it said, whatever its exit code."""
    return docker("run", "--rm", *CONFINED, *options, image, *arguments, check=False)


def shell(image: str, script: str) -> str:
    """Returns what a script prints in a container of image; fails the test if the script fails."""
    return docker("run", "--rm", *CONFINED, "--entrypoint", "sh", image, "-euc", script).stdout


def packages(image: str) -> dict[str, str]:
    """Returns the Python packages in image with their versions, by name as in the locks."""
    listed = json.loads(shell(image, "python3 -m pip list --format=json"))
    return {re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"] for package in listed}


@functools.cache
def why_no_docker() -> str:
    """Returns why no Docker engine can be used, or nothing."""
    if shutil.which("docker") is None:
        return "there is no docker command: install docker.io, or Docker's own packages"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        return f"no Docker engine answers ({reason[0]}): start one, so that `docker info` works for this user"
    return ""


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine, or a reason to skip."""
    if reason := why_no_docker():
        pytest.skip(f"the images were not tested: {reason}")


def build(name: str) -> None:
    """Builds an image as `make images` does."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    done = subprocess.run(
        [ROOT / "scripts" / "build-images", name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="session")
def server_image(engine: None) -> str:
    build("server")
    return "longarm-server"


@pytest.fixture(scope="session")
def client_image(engine: None) -> str:
    build("client")
    return "longarm-client"


@pytest.fixture(scope="session")
def demo_image(engine: None) -> str:
    build("demo")
    return "longarm-client:demo"


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A robot's private key, beside its public one."""
    file = tmp_path_factory.mktemp("key") / "key"
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen: apt-get install openssh-client")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    return file
