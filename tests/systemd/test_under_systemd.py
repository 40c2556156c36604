"""The native units under a real systemd: an edge with the simulated arm, and a real service with a real policy."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.conftest import PLUGINS, VISIBLE, Machine, booted, install_service

pytestmark = pytest.mark.timeout(300)

EDGE, SERVICE = "longarm-edge", "longarm-service"
STATE = "/var/lib/longarm"
# Shorter than a person would have them
EDGE_DROP_IN = f"{VISIBLE}WatchdogSec=4\nRestartSec=1\nTimeoutStartSec=20\nEnvironment=PYTHONPATH={PLUGINS}\n"


@pytest.fixture(scope="module")
def machine(image: str, checkpoint: Path) -> Iterator[Machine]:
    """A machine with both units installed."""
    with booted(image, "--volume", f"{checkpoint}:/srv/policy:ro") as machine:
        install_service(machine)
        machine.run("deploy/systemd/install", "edge", "--venv", sys.prefix)
        machine.write(f"/etc/systemd/system/{EDGE}.service.d/test.conf", EDGE_DROP_IN)
        machine.run("systemctl", "daemon-reload")
        yield machine


class Edge:
    """The unit of the edge, with an arm that writes down what is done to it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def configure(self, **settings: object) -> None:
        """Writes the environment file as a person would: JSON without quotes around it."""
        robot = {"type": "recording_arm", "id": "test", "log": f"{STATE}/arm.log", "stuck": f"{STATE}/stuck"}
        given = {"pretrained_name_or_path": "/srv/policy", "robot": json.dumps(robot), **settings}
        lines = [f"LONGARM_EDGE_{name.upper()}={value}\n" for name, value in given.items()]
        self.machine.write("/etc/longarm/edge.env", "".join(lines))

    def start(self) -> None:
        self.machine.run("systemctl", "start", "--no-block", EDGE)

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", EDGE)

    def show(self, name: str) -> str:
        return self.machine.show(EDGE, name)

    def events(self) -> list[dict]:
        text = self.machine.shell(f"cat {STATE}/arm.log 2>/dev/null || true")
        return [json.loads(line) for line in text.splitlines()]

    def until(self, name: str, *values: str) -> None:
        self.machine.until(lambda: self.show(name) in values, f"{name} is one of {values}", EDGE)

    def journal(self) -> str:
        return self.machine.journal(EDGE)


@pytest.fixture
def edge(machine: Machine) -> Iterator[Edge]:
    edge = Edge(machine)
    edge.configure()
    yield edge
    edge.stop()
    machine.shell(f"rm -f {STATE}/arm.log {STATE}/stuck; systemctl reset-failed {EDGE} || true")
    machine.shell("journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet")


@pytest.fixture
def service(machine: Machine) -> None:
    machine.run("systemctl", "start", SERVICE)


def test_the_edge_waits_for_the_service_and_is_active_once_it_streams(edge, machine) -> None:
    """Longer than TimeoutStartSec=, because it says how far it is: and the arm is not touched until then."""
    machine.run("systemctl", "stop", SERVICE)
    edge.start()
    edge.until("StatusText", "opening a session")
    time.sleep(22)
    assert edge.show("ActiveState") == "activating"
    assert edge.show("NRestarts") == "0"
    assert edge.events() == []
    # Its policy is in memory when this returns
    machine.run("systemctl", "start", SERVICE)
    assert machine.show(SERVICE, "StatusText") == "ready"
    edge.until("ActiveState", "active")
    assert edge.events()[0] == {"event": "connect"}
    assert edge.events()[-1]["event"] == "command"
    assert edge.show("StatusText") in ("streaming", "degraded")


def test_both_run_as_a_user_with_no_powers(edge, machine, service) -> None:
    edge.start()
    edge.until("ActiveState", "active")
    for unit in (EDGE, SERVICE):
        status = machine.shell(f"cat /proc/{machine.show(unit, 'MainPID')}/status")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert facts["Uid"].split()[0] == machine.shell("id -u longarm")
        assert facts["NoNewPrivs"] == "1"
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    groups = set(machine.shell("id -Gn longarm").split())
    assert {"dialout", "video"} <= groups


def test_a_stuck_control_loop_is_restarted_and_the_arm_left_by_rule(edge, machine, service) -> None:
    edge.configure(safety__on_stop="release")
    edge.start()
    edge.until("ActiveState", "active")
    machine.run("touch", f"{STATE}/stuck")
    edge.until("NRestarts", "1")
    machine.run("rm", f"{STATE}/stuck")
    journal = edge.journal()
    assert "Watchdog timeout" in journal
    assert "in send_action" in journal, "where it was stuck"
    assert "leaving it so now, on_stop=release" in journal
    kinds = [event for event in edge.events() if event["event"] != "command"]
    assert kinds[:3] == [{"event": "connect"}, {"event": "connect"}, {"event": "disconnect", "torque": False}]
    edge.until("ActiveState", "active")
    assert edge.show("StatusText") in ("streaming", "degraded")


def test_a_killed_edge_under_hold_is_not_touched_again_before_it_restarts(edge, machine, service) -> None:
    edge.start()
    edge.until("ActiveState", "active")
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", EDGE)
    edge.until("NRestarts", "1")
    assert "are left alone" in edge.journal()
    edge.until("ActiveState", "active")
    assert [event["event"] for event in edge.events() if event["event"] != "command"] == ["connect", "connect"]


def test_a_stop_leaves_the_arm_by_rule_and_takes_its_time(edge, machine, service) -> None:
    """The way back lasts longer than the watchdog would wait: it is not asked any more."""
    edge.configure(safety__on_stop="rest", safety__rest_seconds=7)
    edge.start()
    edge.until("ActiveState", "active")
    edge.stop()
    assert (edge.show("Result"), edge.show("ExecMainStatus")) == ("success", "0"), edge.journal()
    assert edge.show("ActiveState") == "inactive"
    assert "moving to the start pose in 7.0 s" in edge.journal()
    assert "nothing to do" in edge.journal(), "ExecStopPost found the arm left"
    assert edge.events()[-1] == {"event": "disconnect", "torque": False}


def test_a_stop_during_the_start_is_no_failure(edge, machine) -> None:
    machine.run("systemctl", "stop", SERVICE)
    edge.start()
    edge.until("StatusText", "opening a session")
    edge.stop()
    assert (edge.show("Result"), edge.show("ActiveState")) == ("success", "inactive")


def test_what_can_never_start_is_not_restarted(edge, machine) -> None:
    edge.configure(fps=-1)
    edge.start()
    edge.until("ActiveState", "failed")
    time.sleep(4)
    assert (edge.show("ExecMainStatus"), edge.show("NRestarts"), edge.show("ActiveState")) == ("3", "0", "failed")
    assert "LONGARM_EDGE_FPS" in edge.journal()


def test_what_may_start_later_is_tried_for_ever(edge, machine) -> None:
    machine.run("systemctl", "stop", SERVICE)
    edge.configure(connect_timeout=0.1)
    edge.start()
    edge.until("NRestarts", "3")
    assert edge.show("StartLimitIntervalUSec") == "0"
    assert "Gave up after connect_timeout" in edge.journal()


def test_the_service_is_stopped_in_good_order(machine, service) -> None:
    machine.run("systemctl", "stop", SERVICE)
    assert machine.show(SERVICE, "Result") == "success"
    assert machine.show(SERVICE, "ExecMainStatus") == "0"
    assert "stopped" in machine.journal(SERVICE)
