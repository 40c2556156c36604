"""The adapter to LeRobot: one call at a time reaches the hardware, unless the robot says that it takes several."""

import threading
from pathlib import Path

import numpy as np
import pytest
from tests.servos import TORQUE, Servos

from longarm_edge.lerobot_robot import make_robot


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
        own = {
            f"{side}_arm_config": {"port": servos.settings(tmp_path, f"pair_{side}")["port"]}
            for side, servos in {"left": left, "right": right}.items()
        }
        robot = make_robot({"type": "bi_so_follower", "id": "pair", "calibration_dir": str(tmp_path), **own}, [], 30)
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
