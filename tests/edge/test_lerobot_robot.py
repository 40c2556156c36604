"""The adapter to LeRobot: one call at a time reaches the hardware, unless the robot says that it takes several."""

import threading
from pathlib import Path

import numpy as np
import pytest
from tests.servos import TORQUE, Servos

from longarm_edge.lerobot_robot import make_robot
from longarm_edge.robot import Torque
from longarm_wire.settings import ConfigurationError


class Slow:
    """Stands in for LeRobot's bus: reading takes until told, and notes whether a write came in between."""

    def __init__(self) -> None:
        self.reading = threading.Event()
        self.go_on = threading.Event()
        self.overlapped = False

    def get_observation(self) -> dict[str, float]:
        self.reading.set()
        self.go_on.wait(5)
        self.reading.clear()
        return dict.fromkeys(("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos",
                              "wrist_roll.pos", "gripper.pos"), 0.0)  # fmt: skip

    def send_action(self, _: dict[str, float]) -> None:
        self.overlapped = self.reading.is_set()


@pytest.mark.parametrize("thread_safe", [False, True])
def test_calls_are_serialised_unless_the_robot_takes_several(tmp_path, monkeypatch, thread_safe: bool) -> None:
    from lerobot.robots.so_follower import SOFollower

    monkeypatch.setattr(SOFollower, "is_thread_safe", thread_safe, raising=False)
    flags = ["--robot.port=/dev/null", f"--robot.calibration_dir={tmp_path}"]
    robot = make_robot({"type": "so101_follower"}, flags, 30)
    slow = Slow()
    monkeypatch.setattr(robot.lerobot, "get_observation", slow.get_observation)
    monkeypatch.setattr(robot.lerobot, "send_action", slow.send_action)
    reader = threading.Thread(target=robot.observe)
    reader.start()
    assert slow.reading.wait(5)
    writer = threading.Thread(target=robot.send, args=(np.zeros(6, np.float32),))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive() is not thread_safe
    slow.go_on.set()
    reader.join(5)
    writer.join(5)
    assert slow.overlapped is thread_safe


@pytest.mark.parametrize("torque", [True, False], ids=["held", "limp"])
def test_arms_are_read_without_a_word_written_to_them(tmp_path: Path, torque: bool) -> None:
    with Servos(torque=torque) as left, Servos(torque=torque) as right:
        robot = make_robot(pair(tmp_path, left, right), [], 30)
        robot.connect(configure=False)
        assert robot.observe().state.shape == (12,)
        assert left.writes == right.writes == []
        assert left.torque == right.torque == {torque}


def test_a_run_configures_the_motors_even_after_an_examination(tmp_path: Path) -> None:
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        robot.connect(configure=False)
        robot.disconnect(torque=True)
        assert servos.writes == []
        robot.connect()
        assert any(address == TORQUE for _, address, _ in servos.writes)
        robot.disconnect(torque=True)


def pair(directory: Path, left: Servos, right: Servos) -> dict[str, object]:
    """Returns the settings of a bi_so_follower with these servos."""
    arms = {"left": left, "right": right}
    own = {f"{side}_arm_config": {"port": s.settings(directory, f"pair_{side}")["port"]} for side, s in arms.items()}
    return {"type": "bi_so_follower", "id": "pair", "calibration_dir": str(directory), **own}


@pytest.mark.parametrize("torque", [True, False, None])
def test_every_arm_of_two_is_left_as_asked(tmp_path: Path, torque: bool | None) -> None:
    """Each has a configuration of its own, and says off by default: asked to hold, both fell."""
    with Servos(torque=False) as left, Servos(torque=False) as right:
        robot = make_robot(pair(tmp_path, left, right), [], 30)
        assert robot.torque_at_disconnect is Torque.CHOSEN
        robot.connect()
        assert left.torque == right.torque == {True}
        robot.disconnect(torque=torque)
        assert left.torque == right.torque == {bool(torque)}


def test_an_object_that_is_forgotten_does_not_drop_the_arm(tmp_path: Path) -> None:
    """LeRobot's robots disconnect when they are collected, by what their configuration says."""
    with Servos(torque=False) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        robot.connect()
        robot.lerobot.__del__()
        assert servos.torque == {True}


def test_cameras_of_each_arm_can_be_left_out(tmp_path: Path) -> None:
    camera = {"type": "opencv", "index_or_path": 0, "width": 64, "height": 48, "fps": 30}
    arms = {f"{side}_arm_config": {"port": "/dev/null", "cameras": {"wrist": camera}} for side in ("left", "right")}
    settings = {"type": "bi_so_follower", "calibration_dir": str(tmp_path), "cameras": {"top": camera}, **arms}
    assert len(make_robot(settings, [], 30).spec.cameras) == 3
    assert make_robot(settings, [], 30, cameras=False).spec.cameras == ()


def test_a_robot_that_connects_without_a_word_about_calibration(tmp_path: Path, monkeypatch) -> None:
    """LeRobot's lekiwi_client: its connect takes no argument, and it does not say whether it is calibrated."""
    from lerobot.robots.lekiwi import LeKiwiClient

    calls: list[str] = []
    monkeypatch.setattr(LeKiwiClient, "connect", lambda _: calls.append("connect"))
    monkeypatch.setattr(LeKiwiClient, "__init__", lambda self, config: setattr(self, "config", config))
    monkeypatch.setattr(LeKiwiClient, "_is_connected", True, raising=False)
    robot = make_robot({"type": "lekiwi_client", "remote_ip": "127.0.0.1", "cameras": {}}, [], 30)
    assert robot.torque_at_disconnect is Torque.KEPT
    robot.connect()
    assert calls == ["connect"]
    monkeypatch.setattr(LeKiwiClient, "get_observation", lambda _: {})
    with pytest.raises(ConnectionError, match=r"gave no value for arm_shoulder_pan.pos"):
        robot.observe()
    monkeypatch.setattr(LeKiwiClient, "_is_connected", False)


def test_the_step_of_a_reading_is_told_when_no_command_is_on_its_way(tmp_path, monkeypatch) -> None:
    """Told before the turn came, a command would go out in between, and the chunk would leap by a step."""
    robot = make_robot(
        {"type": "so101_follower"}, ["--robot.port=/dev/null", f"--robot.calibration_dir={tmp_path}"], 30
    )
    slow, steps = Slow(), [7]
    monkeypatch.setattr(robot.lerobot, "get_observation", slow.get_observation)
    sending, sent = threading.Event(), threading.Event()

    def send(_: dict[str, float]) -> None:
        sending.set()
        sent.wait(5)
        steps[0] = 8

    monkeypatch.setattr(robot.lerobot, "send_action", send)
    writer = threading.Thread(target=robot.send, args=(np.zeros(6, np.float32),))
    writer.start()
    assert sending.wait(5)
    readings: list[int] = []
    reader = threading.Thread(target=lambda: readings.append(robot.observe(lambda: steps[0]).step))
    reader.start()
    reader.join(0.2)
    slow.go_on.set()
    sent.set()
    writer.join(5)
    reader.join(5)
    assert readings == [8]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--robot.prt=/dev/x"], "unrecognized arguments: --robot.prt=/dev/x. A so101_follower has --robot.port, "),
        (["--robot.port=/dev/x", "--robot.cameras={front"], "expected ',' or '}'"),
        (
            ["--robot.port=/dev/x", "--robot.cameras={front: {type: opencv, index_or_path: 0, width: 640}}"],
            "Specifying 'height' is required",
        ),
    ],
)
def test_a_flag_that_lerobot_refuses_is_told_in_one_line(flags: list[str], message: str, capfd) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make_robot({}, ["--robot.type=so101_follower", *flags], 30)
    (problem,) = refused.value.problems
    assert message in problem
    assert "\n" not in problem
    assert capfd.readouterr().err == ""
