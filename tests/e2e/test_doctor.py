"""The doctor against a real service: what it says of a healthy system, and of each way to be ill."""

import json
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from longarm_edge import pose_file
from longarm_edge.doctor.examine import Examination
from longarm_edge.doctor.findings import Finding, Verdict, as_json, exit_code
from longarm_edge.doctor.lerobot_checks import check_calibration, check_cameras, check_port
from longarm_edge.lerobot_robot import LeRobotRobot, make_robot
from longarm_edge.settings import EdgeSettings
from longarm_wire import exit_codes
from longarm_wire.specs import PolicySpec
from tests.e2e.conftest import DEFAULT_SPEC
from tests.servos import Servos


@pytest.fixture
def examine(service, arm, monkeypatch):
    """Returns a function that examines with settings on top of the test's own, and gives findings by check."""
    monkeypatch.setattr("longarm_edge.lerobot_robot.make_robot_from_config", lambda _: arm)

    def run(**overrides):
        values = {"server_address": service.address, "pretrained_name_or_path": "scripted", **overrides}
        values.setdefault("robot", {"type": "longarm_test_arm", "id": "x"})
        examination = Examination(EdgeSettings(_env_file=None, **values), [])
        findings = list(examination.findings())
        return {finding.check: finding for finding in findings}, findings, examination

    return run


def examine_robot(service, robot: dict[str, object]) -> list[Finding]:
    """Returns the findings of a robot as LeRobot makes it."""
    values = {"server_address": service.address, "pretrained_name_or_path": "scripted", "robot": robot}
    return list(Examination(EdgeSettings(_env_file=None, **values), []).findings())


def test_a_healthy_system(examine, arm, script) -> None:
    script.seconds = 0.05
    checks, findings, examination = examine()
    assert exit_code(findings) == exit_codes.WARNINGS, "it runs on the CPU"
    assert exit_code([f for f in findings if f.check != "device"]) == exit_codes.DONE
    assert [f.check for f in findings if f.verdict is Verdict.FAILED] == []
    assert "chunks of 30" in checks["policy"].found
    assert "5" in checks["chunk"].found
    assert "idle ticks 0.0%" in checks["prediction"].found
    assert checks["advice"].fix == ""
    assert arm.commands == [], "a doctor moves nothing"
    assert not arm.is_connected
    assert arm.torque, "it holds what it held"
    document = json.loads(as_json(findings, examination.measured))
    assert document["verdict"] == "warning", "it runs on the CPU"
    assert document["costs"]["service"] == pytest.approx(0.05, rel=0.5)
    assert document["prediction"]["idle_share"] == 0
    assert document["recommendation"]["flags"] == []


def test_it_works_with_the_simulated_arm(service, script, tmp_path) -> None:
    script.spec = PolicySpec("scripted", 6, 6, {"observation.images.front": (48, 64)}, 50)
    flags = ["--robot.type=longarm_sim", "--robot.id=x", f"--robot.calibration_dir={tmp_path}"]
    settings = EdgeSettings(_env_file=None, server_address=service.address, pretrained_name_or_path="scripted")
    findings = list(Examination(settings, flags).findings())
    assert [f for f in findings if f.verdict is Verdict.FAILED] == []
    assert "6 actions" in next(f.found for f in findings if f.check == "robot")


@pytest.mark.parametrize("torque", [True, False], ids=["held", "limp"])
def test_an_arm_is_left_as_it_was_found(service, script, tmp_path, torque: bool) -> None:
    """LeRobot's own SO-101: by itself it takes the torque off and puts it on as it connects, and drops the arm then."""
    script.spec = PolicySpec("scripted", 6, 6, {}, 50)
    with Servos(torque=torque) as servos:
        findings = examine_robot(service, {"type": "so101_follower", **servos.settings(tmp_path)})
    assert [f for f in findings if f.verdict is Verdict.FAILED] == []
    assert "6 actions" in next(f.found for f in findings if f.check == "robot")
    assert servos.writes == [], "nothing is written to a motor, not even for a moment"
    assert servos.torque == {torque}


@pytest.mark.parametrize("torque", [True, False], ids=["held", "limp"])
def test_both_arms_of_a_pair_are_left_as_they_were_found(service, script, tmp_path, torque: bool) -> None:
    script.spec = PolicySpec("scripted", 12, 12, {}, 50)
    with Servos(torque=torque) as left, Servos(torque=torque) as right:
        arms = {
            f"{side}_arm_config": {"port": servos.settings(tmp_path, f"pair_{side}")["port"]}
            for side, servos in {"left": left, "right": right}.items()
        }
        robot = {"type": "bi_so_follower", "id": "pair", "calibration_dir": str(tmp_path), **arms}
        findings = examine_robot(service, robot)
    assert [f for f in findings if f.verdict is Verdict.FAILED] == []
    assert left.writes == right.writes == []


def test_an_arm_that_is_not_calibrated_is_left_as_it_was_found(service, tmp_path) -> None:
    with Servos(torque=True) as servos:
        robot = servos.settings(tmp_path)
        file = tmp_path / "mine.json"
        file.write_text(file.read_text().replace("4095", "4000"))
        findings = examine_robot(service, {"type": "so101_follower", **robot})
    assert "not calibrated" in next(f.found for f in findings if f.check == "robot")
    assert servos.writes == []


def test_chunks_that_are_too_short_for_the_policy_get_advice(examine, script) -> None:
    script.seconds = 0.3
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.front": (48, 64)}, chunk_size=5)
    checks, _, _ = examine()
    assert checks["prediction"].verdict is Verdict.WARNING
    assert "a chunk lasts 167 ms: the arm stands until the next comes" in checks["prediction"].found
    assert "faster GPU" in checks["advice"].found
    assert "fps" not in checks["advice"].fix, "the actions of a policy are as far apart as it was trained"


def test_what_a_policy_says_of_its_chunks_is_told(examine, script) -> None:
    script.spec = replace(DEFAULT_SPEC, n_action_steps=10)
    checks, _, _ = examine()
    assert "LeRobot executes so many actions" in checks["chunks"].found
    assert "--actions_per_chunk=10 leaves them out" in checks["chunks"].found
    assert checks["chunks"].verdict is Verdict.OK
    for settings in ({"actions_per_chunk": 10}, {"actions_per_chunk": 5}):
        assert "chunks" not in examine(**settings)[0]


def test_answers_that_no_run_would_use_have_failed(examine, script) -> None:
    script.seconds = 0.3
    checks, findings, _ = examine(safety={"max_action_age": 0.2}, request_timeout=0.25)
    assert checks["prediction"].verdict is Verdict.FAILED
    assert "longer than safety.max_action_age=0.2 s: the arm never moves" in checks["prediction"].found
    assert "none is waited for longer than request_timeout=0.25 s" in checks["deadline"].found
    assert checks["deadline"].fix == "--request_timeout=1"
    assert exit_code(findings) == exit_codes.FAILED


def test_all_actions_of_a_chunk_are_advised_where_too_few_are_taken(examine, script) -> None:
    script.seconds = 0.4
    checks, _, _ = examine(actions_per_chunk=8)
    assert "chunks of 30, 8 are taken" in checks["policy"].found
    assert checks["prediction"].verdict is Verdict.WARNING
    assert checks["advice"].fix == "--actions_per_chunk=30"


def test_costs_are_those_of_the_codec_that_is_set(examine, script) -> None:
    bytes_of = {}
    for codec in ("jpeg", "raw"):
        checks, _, examination = examine(image_codec=codec, jpeg_quality=80)
        bytes_of[codec] = examination.measured["costs"]["observation_bytes"]
        assert f"as {'JPEG of quality 80' if codec == 'jpeg' else 'raw'}" in checks["observation"].found
    assert bytes_of["raw"] == 48 * 64 * 3 + 3 * 4
    assert bytes_of["jpeg"] < bytes_of["raw"] / 5


def test_a_horizon_that_is_too_short_for_the_link_is_found_with_chunks_that_follow(examine, script) -> None:
    script.seconds = 0.1
    cameras = {"observation.images.front": (48, 64)}
    script.spec = PolicySpec("scripted", 3, 3, cameras, 30, supports_rtc=True, model_action_dim=3)
    checks, _, _ = examine(aggregate_fn_name="rtc", rtc={"execution_horizon": 2})
    assert checks["advice"].fix.startswith("--rtc.execution_horizon=")
    assert "jump" in checks["advice"].found
    followed = [guidance for _, guidance in script.seen if guidance is not None and guidance.prefix is not None]
    assert followed, "what a chunk takes that follows another is what is measured"


def test_no_service(examine, service) -> None:
    service.stop()
    checks, findings, _ = examine()
    assert exit_code(findings) == exit_codes.FAILED
    assert service.address in checks["service"].found
    assert checks["policy"].verdict is checks["measurements"].verdict is Verdict.SKIPPED


def test_a_camera_that_does_not_fit_is_named_with_its_rename(examine, script) -> None:
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.top": (48, 64)}, 30)
    checks, findings, _ = examine()
    assert exit_code(findings) == exit_codes.FAILED
    assert "rename_map=" in checks["names and cameras"].found


def test_a_camera_unlike_the_training_data_is_said_with_the_size_to_set(examine, script) -> None:
    script.spec = PolicySpec("scripted", 3, 3, {"observation.images.front": (480, 640)}, 30)
    checks, findings, _ = examine()
    assert checks["note"].verdict is Verdict.WARNING
    assert "Camera 'front' gives 64x48" in checks["note"].found
    assert "width: 640, height: 480 in --robot.cameras" in checks["note"].found
    assert "sends front 64x48" in checks["policy"].found
    assert [f for f in findings if f.verdict is Verdict.FAILED] == [], "it runs all the same"


def test_an_unknown_policy(examine) -> None:
    checks, _, _ = examine(pretrained_name_or_path="nobody/nothing")
    assert checks["policy"].verdict is Verdict.FAILED
    assert "nobody/nothing" in checks["policy"].found


def test_a_policy_that_fails(examine, script) -> None:
    script.always = RuntimeError("out of memory")
    checks, _, _ = examine()
    assert checks["measurements"].verdict is Verdict.FAILED


def test_a_driver_that_exits_ends_no_examination(examine, arm, monkeypatch) -> None:
    """The doctor ended with the driver's exit code, and without a word."""
    monkeypatch.setattr(arm, "connect", Mock(side_effect=SystemExit(0)))
    checks, findings, _ = examine()
    assert exit_code(findings) == exit_codes.FAILED
    assert checks["robot"].verdict is Verdict.FAILED
    assert checks["service"].verdict is Verdict.OK


def test_a_robot_that_a_run_has_is_left_alone(examine, arm, monkeypatch, tmp_path) -> None:
    """It was connected to beside the run, unless a serial port kept them apart."""
    path = tmp_path / "pose.json"
    connect = Mock(side_effect=arm.connect)
    monkeypatch.setattr(arm, "connect", connect)
    held = pose_file.lock(path)
    checks, findings, _ = examine(safety={"pose_file": path})
    os.close(held)
    assert checks["robot"].verdict is Verdict.WARNING
    assert f"a run has it, and keeps {path}" in checks["robot"].found
    assert checks["policy"].verdict is Verdict.OK
    assert checks["measurements"].verdict is Verdict.SKIPPED
    assert exit_code(findings) == exit_codes.WARNINGS
    assert not connect.called
    checks, _, _ = examine(safety={"pose_file": path})
    assert checks["robot"].verdict is Verdict.OK, "it is over"


def test_a_bad_configuration_is_found_and_the_rest_is_looked_at(examine) -> None:
    checks, findings, _ = examine(safety={"max_step": {"elbow.pos": 3}})
    assert exit_code(findings) == exit_codes.FAILED
    assert "elbow.pos" in checks["configuration"].found
    assert checks["service"].verdict is Verdict.OK


class TestRobotChecks:
    """Against LeRobot's own SO-101 class, which is made without hardware."""

    def robot(self, tmp_path: Path, port: str) -> LeRobotRobot:
        flags = [f"--robot.port={port}", "--robot.id=mine", f"--robot.calibration_dir={tmp_path}"]
        return make_robot({"type": "so101_follower"}, flags, 30)

    def test_a_port_that_is_not_there(self, tmp_path: Path) -> None:
        finding = check_port(self.robot(tmp_path, "/dev/ttyNOPE9").lerobot.config)
        assert finding.verdict is Verdict.FAILED
        assert "lerobot-find-port" in finding.fix

    def test_a_port_that_is_no_device(self, tmp_path: Path) -> None:
        (tmp_path / "port").touch()
        assert "no device" in check_port(self.robot(tmp_path, str(tmp_path / "port")).lerobot.config).found

    def test_a_port_that_may_be_opened(self, tmp_path: Path) -> None:
        controller, line = os.openpty()
        try:
            assert check_port(self.robot(tmp_path, os.ttyname(line)).lerobot.config).verdict is Verdict.OK
        finally:
            os.close(controller)
            os.close(line)

    def test_calibration(self, tmp_path: Path) -> None:
        (arm,) = self.robot(tmp_path, "/dev/null").arms
        missing = check_calibration(arm)
        assert missing.verdict is Verdict.FAILED
        assert "lerobot-calibrate" in missing.fix
        (tmp_path / "mine.json").write_text("{}")
        assert check_calibration(arm).verdict is Verdict.OK

    def test_each_arm_of_two_is_looked_at(self, tmp_path: Path) -> None:
        arms = {"left_arm_config": {"port": "/dev/null"}, "right_arm_config": {"port": "/dev/ttyNOPE9"}}
        settings = {"type": "bi_so_follower", "id": "pair", "calibration_dir": str(tmp_path), **arms}
        (tmp_path / "pair_left.json").write_text("{}")
        values = {"robot": settings, "pretrained_name_or_path": "scripted", "server_address": "127.0.0.1:1"}
        findings = list(Examination(EdgeSettings(_env_file=None, **values), []).findings())
        found = [(f.check, f.verdict) for f in findings if f.check in ("serial port", "calibration", "robot")]
        assert found == [
            ("serial port", Verdict.OK),
            ("calibration", Verdict.OK),
            ("serial port", Verdict.FAILED),
            ("calibration", Verdict.FAILED),
            ("robot", Verdict.SKIPPED),
        ]

    def test_the_users_own_word_for_the_robot_is_used(self, tmp_path: Path) -> None:
        assert self.robot(tmp_path, "/dev/null").spec.robot_type == "so101_follower"

    def test_cameras_are_counted(self, tmp_path: Path) -> None:
        import time

        import numpy as np

        class Camera:
            fps = 30

            def __init__(self, period: float) -> None:
                self.period = period

            def async_read(self) -> np.ndarray:
                if self.period < 0:
                    raise TimeoutError("no frame within 200 ms")
                time.sleep(self.period)
                return np.zeros((480, 640, 3), np.uint8)

        robot = self.robot(tmp_path, "/dev/null")
        robot.lerobot.cameras = {"good": Camera(0.02), "slow": Camera(0.2), "dead": Camera(-1)}
        findings = {finding.check: finding for finding in check_cameras(robot)}
        assert findings["camera good"].verdict is Verdict.OK
        assert findings["camera slow"].verdict is Verdict.WARNING
        assert findings["camera dead"].verdict is Verdict.FAILED
