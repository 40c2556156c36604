"""The adapter to LeRobot: one call at a time reaches the hardware, unless the robot says that it takes several."""

import threading
from pathlib import Path

import numpy as np
import pytest
from tests.servos import TORQUE, Servos

from longarm_edge.lerobot_robot import make_robot, parse_robot
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


def camera(**fields: object) -> dict[str, object]:
    whole = {"type": "opencv", "index_or_path": 0, "width": 640, "height": 480, "fps": 30, **fields}
    return {"front": {name: value for name, value in whole.items() if value is not None}}


@pytest.mark.parametrize(
    ("settings", "flags", "words"),
    [
        ({"cameras": camera(width=None)}, [], "Specifying 'width' is required"),
        ({"cameras": camera(color_mode="pink")}, [], "expected to be in .*rgb"),
        ({"cameras": camera(fps="many")}, [], "front.fps.*Couldn't parse 'many' into an int"),
        ({"cameras": camera(type="opencvv")}, [], "Couldn't find a choice class for 'opencvv'"),
        ({}, ["--robot.cameras={front: {type: opencv, index_or_path: 0}}"], "Specifying '(width|height)' is required"),
        ({}, ["--robot.cameras={front: {type: opencv"], "flow mapping"),
        ({}, ["--robot.wheels=4"], "--robot: LeRobot refuses .*: unrecognized arguments: --robot.wheels=4$"),
    ],
)
def test_what_lerobot_refuses_is_told_with_its_cause(
    settings: dict[str, object], flags: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){words}"):
        parse_robot({"type": "so101_follower", "port": "/dev/null", **settings}, flags)
    assert capfd.readouterr().err == "", "the message says it all"


def test_a_port_that_does_not_open_is_told_with_its_cause(tmp_path: Path) -> None:
    settings = {"type": "so101_follower", "port": str(tmp_path / "port"), "calibration_dir": str(tmp_path)}
    with pytest.raises(ConnectionError, match=r"(?s)lerobot-find-port.*No such file"):
        make_robot(settings, [], 30).connect()


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
