"""The adapter to LeRobot: one call at a time reaches the hardware, unless the robot says that it takes several."""

import threading

import numpy as np
import pytest

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
