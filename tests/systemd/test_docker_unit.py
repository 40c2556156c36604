"""The unit for Docker under a real systemd, with a real engine: this machine's own.

An image of the tests stands for the client image: Longarm is mounted into it, and its user is as far from root.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.conftest import DEPLOY, MOUNTS, PLUGINS, Machine, booted, docker, install_service

pytestmark = pytest.mark.timeout(900)

UNIT = "longarm-edge-docker"
UID = 10001
CLIENT = "longarm-test-client"
ENGINE = ("--volume", "/usr/bin/docker:/usr/bin/docker:ro", "--volume", "/var/run/docker.sock:/var/run/docker.sock")


class Container:
    """The unit, and the container that it runs beside the machine."""

    def __init__(self, machine: Machine, name: str, shared: Path) -> None:
        self.machine = machine
        self.name = name
        self.shared = shared

    def configure(self, **settings: object) -> None:
        robot = {"type": "recording_arm", "log": "/run/longarm/arm.log", "calibration_dir": "/tmp"}
        given = {"pretrained_name_or_path": "/srv/policy", "robot": json.dumps(robot), **settings}
        lines = [f"LONGARM_EDGE_{name.upper()}={value}\n" for name, value in given.items()]
        self.machine.write("/etc/longarm/edge.env", "".join(lines))

    def start(self) -> None:
        self.machine.run("systemctl", "start", "--no-block", UNIT)

    def show(self, name: str) -> str:
        return self.machine.show(UNIT, name)

    def journal(self) -> str:
        return self.machine.journal(UNIT)

    def events(self) -> list[str]:
        log = self.shared / "arm.log"
        return [json.loads(line)["event"] for line in log.read_text().splitlines()] if log.exists() else []

    def until_streaming(self) -> None:
        self.machine.until(lambda: self.events()[-1:] == ["command"], "the arm moves", UNIT)


@pytest.fixture(scope="module")
def machine(image: str, checkpoint: Path, tmp_path_factory) -> Iterator[Container]:
    if not Path("/var/run/docker.sock").exists() or not Path("/usr/bin/docker").exists():
        pytest.skip("no Docker engine of this machine at /var/run/docker.sock, with the client at /usr/bin/docker")
    # The unit's RuntimeDirectory=, which the engine knows by the name that it has on this machine
    shared = tmp_path_factory.mktemp("run")
    name = f"longarm-edge-test-{os.getpid()}"
    parents = " ".join({str(parent) for mount in MOUNTS for parent in mount.parents} - {"/"})
    context = str(Path(__file__).parent / "client")
    docker("build", "--quiet", "--tag", CLIENT, "--build-arg", f"PARENTS={parents}", context)
    flags = ("--volume", f"{checkpoint}:/srv/policy:ro", "--volume", f"{shared}:/run/{UNIT}", *ENGINE)
    with booted(image, *flags) as booted_machine:
        install_service(booted_machine)
        booted_machine.run("systemctl", "start", "longarm-service")
        booted_machine.run("deploy/systemd/install", "edge-docker")
        unit = (DEPLOY / f"{UNIT}.service").read_text()
        # A robot of this machine's own must not meet the test
        unit = unit.replace(" longarm-edge", f" {name}").replace(f"--volume %t/{UNIT}", f"--volume {shared}")
        booted_machine.write(f"/etc/systemd/system/{UNIT}.service", unit)
        # What the arm was told is read after the stop
        drop_in = "[Service]\nRuntimeDirectoryPreserve=yes\nRestartSec=1\n"
        booted_machine.write(f"/etc/systemd/system/{UNIT}.service.d/test.conf", drop_in)
        mounts = " ".join(f"--volume={path}:{path}:ro" for path in MOUNTS)
        arguments = f"--network=container:{booted_machine.name} {mounts} --env=PYTHONPATH={PLUGINS} --env=HOME=/tmp"
        entry = f"--entrypoint={sys.prefix}/bin/longarm-edge"
        text = f"IMAGE={CLIENT}\nCONTAINER_UID={UID}\nDOCKER_ARGS={arguments} {entry}\n"
        booted_machine.write("/etc/longarm/edge-docker.env", text)
        booted_machine.run("systemctl", "daemon-reload")
        yield Container(booted_machine, name, shared / "pose")
        docker("rm", "--force", name, check=False)


@pytest.fixture
def edge(machine: Container) -> Iterator[Container]:
    machine.configure()
    yield machine
    machine.machine.run("systemctl", "stop", UNIT)
    (machine.shared / "arm.log").unlink(missing_ok=True)


def test_a_stop_leaves_the_arm_by_rule(edge) -> None:
    edge.start()
    edge.until_streaming()
    facts = json.loads(docker("inspect", edge.name).stdout)[0]
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert facts["HostConfig"]["CapDrop"] == ["ALL"]
    assert (edge.shared / "pose.json").exists()
    edge.machine.run("systemctl", "stop", UNIT)
    assert (edge.show("Result"), edge.show("ExecMainStatus")) == ("success", "0"), edge.journal()
    assert "nothing to do" in edge.journal()
    assert "Error" not in edge.journal()
    assert edge.events()[-1] == "disconnect"
    assert docker("inspect", edge.name, check=False).returncode != 0, "the container is gone"


def test_a_killed_container_is_left_by_rule_and_started_again(edge) -> None:
    edge.configure(safety__on_stop="release")
    edge.start()
    edge.until_streaming()
    docker("kill", edge.name)
    edge.machine.until(lambda: edge.show("NRestarts") == "1", "started again", UNIT)
    assert "leaving it so now, on_stop=release" in edge.journal()
    assert [event for event in edge.events() if event != "command"][:3] == ["connect", "connect", "disconnect"]
    edge.until_streaming()


def test_what_can_never_start_is_not_restarted(edge) -> None:
    edge.configure(fps=-1)
    edge.start()
    edge.machine.until(lambda: edge.show("ActiveState") == "failed", "failed", UNIT)
    assert (edge.show("ExecMainStatus"), edge.show("NRestarts")) == ("3", "0")
