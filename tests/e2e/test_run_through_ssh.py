"""The edge through a real sshd: it opens the tunnel by itself, outlives sshd, and says what is wrong at the start."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from rich.console import Console

from longarm_edge.doctor.examine import Examination
from longarm_edge.doctor.findings import Verdict
from longarm_edge.lerobot_robot import make_robot
from longarm_edge.link import LinkState
from longarm_edge.metrics import Tick
from longarm_edge.run import Run
from longarm_edge.schedule import MonotonicClock
from longarm_edge.settings import EdgeSettings
from longarm_edge.tunnel.local_sshd import make_key
from longarm_edge.tunnel.settings import Backend, SshSettings
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError
from longarm_wire.specs import PolicySpec
from tests.conftest import read_until
from tests.e2e.conftest import EdgeRun, until


@pytest.fixture
def ssh(sshd, service) -> SshSettings:
    return sshd.settings(service_port=service.port)


def executed(run: Run) -> int:
    return run.trace.tick_counts[Tick.ACTION]


def test_a_run_through_the_tunnel(edge, ssh, arm) -> None:
    e = edge(ssh=ssh, server_address="127.0.0.1:1", duration=2.0, connect_timeout=15.0)
    seen = []

    def scrape(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        with urllib.request.urlopen(f"http://127.0.0.1:{run.endpoint.port}/metrics") as answer:
            seen.append(answer.read().decode())

    result = e.go(scrape)
    assert result.exit_code == exit_codes.DONE
    assert result.summary.idle_after_first_second == 0
    assert "longarm_edge_tunnel_up 1.0" in seen[0]
    assert (np.diff([c[0] for _, c in arm.commands]) == 1).all() or result.summary.ticks[Tick.SKIPPED]


@pytest.mark.parametrize("backend", Backend)
def test_sshd_is_killed_and_comes_back(edge, ssh, sshd, script, arm, backend: Backend) -> None:
    """No idle tick as long as the queue lasts, a defined hold after it, streaming again soon after sshd is back."""
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.front": (48, 64)}, chunk_size=60)
    settings = ssh.model_copy(update={"backend": backend})
    e = edge(ssh=settings, duration=0, connect_timeout=20.0, request_timeout=2.0)
    facts = {}

    def outage(run: Run) -> None:
        until(lambda: executed(run) > 40, "streaming")
        sshd.stop()
        left = run.queue.depth()
        before = run.trace.tick_counts[Tick.IDLE]
        until(lambda: executed(run) >= facts.setdefault("executed", executed(run)) + left - 3, "the queue is played")
        facts["idle while the queue lasted"] = run.trace.tick_counts[Tick.IDLE] - before
        until(lambda: run.trace.tick_counts[Tick.IDLE] > 10, "it ran empty")
        facts["state"] = run.link_state()
        held = len(arm.commands)
        time.sleep(1.0)
        facts["commands while held"] = len(arm.commands) - held
        sshd.start()
        back = time.monotonic()
        until(lambda: len(arm.commands) > held + 3, "streaming again", timeout=20)
        facts["seconds"] = time.monotonic() - back
        os.kill(os.getpid(), signal.SIGINT)

    result = e.go(outage)
    print(facts)
    assert result.exit_code == exit_codes.DONE
    assert facts["idle while the queue lasted"] == 0
    assert facts["state"] in (LinkState.RECONNECTING, LinkState.STALLED)
    assert facts["commands while held"] == 0, "hold sends nothing"
    assert facts["seconds"] < 10, "measured: well below 1 s on an idle machine; this only guards against never"
    assert e.run.trace.reconnect_counts.total() >= 1


def test_the_simulated_arm_outlives_sshd(ssh, sshd, script, tmp_path) -> None:
    """The same with MuJoCo behind LeRobot's interface: cameras are rendered, physics goes on while the arm is held."""
    script.spec = PolicySpec("scripted", 6, 6, {"observation.images.front": (48, 64)}, chunk_size=60)
    values = {"pretrained_name_or_path": "scripted", "metrics_port": 0, "connect_timeout": 20.0, "ssh": ssh}
    flags = ["--robot.type=longarm_sim", "--robot.id=test", f"--robot.calibration_dir={tmp_path}"]
    settings = EdgeSettings(_env_file=None, **values)
    robot = make_robot({}, flags, settings.fps)
    e = EdgeRun(Run(settings, robot, Console(quiet=True), MonotonicClock()))
    poses = []

    def outage(run: Run) -> None:
        until(lambda: executed(run) > 40, "streaming")
        sshd.stop()
        left, before = run.queue.depth(), executed(run)
        until(lambda: executed(run) >= before + left - 3, "the queue is played")
        assert run.trace.tick_counts[Tick.IDLE] == 0, "no idle tick as long as the queue lasts"
        until(lambda: run.trace.tick_counts[Tick.IDLE] > 30, "it ran empty")
        poses.append(robot.lerobot.ground_truth().joint_positions["shoulder_pan"])
        time.sleep(1)
        poses.append(robot.lerobot.ground_truth().joint_positions["shoulder_pan"])
        sshd.start()
        held = executed(run)
        until(lambda: executed(run) > held + 30, "streaming again", timeout=20)
        os.kill(os.getpid(), signal.SIGINT)

    result = e.go(outage)
    assert result.exit_code == exit_codes.DONE
    assert poses[0] == pytest.approx(poses[1], abs=0.5), "held, in degrees"


def test_a_host_that_nobody_vouches_for_is_refused_before_the_robot_is_touched(edge, ssh, arm, tmp_path) -> None:
    ssh.known_hosts_file.write_text("")
    with pytest.raises(ConfigurationError, match="host_key_unknown"):
        edge(ssh=ssh, connect_timeout=15.0).go()
    assert not arm.is_connected
    assert arm.commands == []


def test_a_host_key_that_changes_in_the_middle_ends_the_run_for_good(edge, ssh, sshd, arm) -> None:
    """A supervisor must not start it again and again: exit code 3. The arm is left by rule."""
    e = edge(ssh=ssh, duration=0, connect_timeout=15.0)

    def swap_the_machine(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        sshd.stop()
        sshd.host_key.unlink()
        sshd.host_key.with_suffix(".pub").unlink()
        make_key(sshd.host_key)
        sshd.start()

    result = e.go(swap_the_machine)
    assert result.exit_code == exit_codes.CANNOT_START
    assert "host_key_changed" in result.reason
    assert not arm.is_connected
    assert arm.torque


def test_a_login_refused_in_the_middle_ends_the_run_and_not_for_good(edge, ssh, sshd, arm) -> None:
    """A machine that boots may refuse for a while: a supervisor may start the run again."""
    e = edge(ssh=ssh, duration=0, connect_timeout=15.0, safety={"max_offline": 3.0})

    def lock_out(run: Run) -> None:
        until(lambda: executed(run) > 20, "streaming")
        sshd.authorized_keys.write_text("")
        sshd.drop_connections()

    result = e.go(lock_out)
    assert result.exit_code == exit_codes.FAILED
    assert "max_offline" in result.reason
    assert "refuses the login" in result.reason


def test_no_sshd_fails_with_the_step(edge, ssh, sshd) -> None:
    sshd.stop()
    result = edge(ssh=ssh, connect_timeout=2.0).go()
    assert result.exit_code == exit_codes.FAILED
    assert "(tcp)" in result.reason


class TestDoctor:
    def examine(self, arm, monkeypatch, ssh):
        monkeypatch.setattr("longarm_edge.lerobot_robot.make_robot_from_config", lambda _: arm)
        settings = EdgeSettings(
            _env_file=None,
            ssh=ssh,
            pretrained_name_or_path="scripted",
            robot={"type": "longarm_test_arm", "id": "x"},
            connect_timeout=8.0,
        )
        return {finding.check: finding for finding in Examination(settings, []).findings()}

    def test_every_step_has_a_verdict(self, arm, monkeypatch, ssh) -> None:
        checks = self.examine(arm, monkeypatch, ssh)
        for step in ("ssh settings", "ssh address", "ssh server", "host key", "ssh login", "tunnel", "service"):
            assert checks[step].verdict is Verdict.OK
        assert checks["prediction"].verdict is Verdict.OK

    def test_the_step_that_fails_is_told_and_the_rest_skipped(self, arm, monkeypatch, ssh, tmp_path) -> None:
        ssh.known_hosts_file.write_text("")
        checks = self.examine(arm, monkeypatch, ssh)
        assert checks["ssh server"].verdict is Verdict.OK
        assert checks["host key"].verdict is Verdict.FAILED
        assert checks["ssh login"].verdict is Verdict.SKIPPED
        assert checks["service"].verdict is Verdict.SKIPPED
        assert checks["robot"].verdict is Verdict.OK

    def test_a_person_at_a_terminal_is_asked_about_an_unknown_host(self, ssh, sshd, service, tmp_path) -> None:
        """As a run asks: what doctor is told to trust, the run then knows."""
        ssh.known_hosts_file.write_text("")
        own = {name: value for name in ssh.model_fields_set if (value := getattr(ssh, name)) is not None}
        flags = [f"--ssh.{name}={value}" for name, value in own.items()]
        ours, theirs = pty.openpty()
        with (tmp_path / "out.json").open("w") as out:
            doctor = subprocess.Popen(
                [sys.executable, "-m", "longarm_edge", "doctor", "--json", *flags],
                env={k: v for k, v in os.environ.items() if not k.startswith("LONGARM_")},
                cwd=tmp_path,
                stdin=theirs,
                stdout=out,
                stderr=theirs,
            )
        os.close(theirs)
        assert "is not known yet" in read_until(ours, "(yes/no) ")
        os.write(ours, b"yes\n")
        with contextlib.suppress(OSError):  # its end
            while os.read(ours, 4096):
                pass
        os.close(ours)
        doctor.wait(10)
        findings = {f["check"]: f["verdict"] for f in json.loads((tmp_path / "out.json").read_text())["findings"]}
        assert findings["host key"] == findings["service"] == "ok"
        assert ssh.known_hosts_file.read_text() == sshd.known_hosts
