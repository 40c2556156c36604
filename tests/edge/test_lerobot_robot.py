"""The adapter to LeRobot: one call at a time reaches the hardware, unless the robot says that it takes several."""

import os
import stat
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from tests.servos import TORQUE, Servos

from longarm_edge.aside import aside
from longarm_edge.lerobot_robot import LeRobotRobot, make_robot, parse_robot
from longarm_edge.ports import Held
from longarm_edge.robot import CameraError, Torque
from longarm_wire.settings import ConfigurationError


def start(robot: LeRobotRobot) -> None:
    """As a run begins."""
    robot.connect()
    robot.configure()


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
    monkeypatch.setattr(robot, "_ready", True)
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
        ({}, ["--robot.wheels=4"], "--robot: LeRobot refuses .*: unrecognized arguments: --robot.wheels=4"),
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
        robot = make_robot(pair(tmp_path, left, right), [], 30)
        robot.connect()
        assert robot.observe().state.shape == (12,)
        assert left.writes == right.writes == []
        assert left.torque == right.torque == {torque}


def test_a_run_configures_the_motors_even_after_an_examination(tmp_path: Path) -> None:
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        robot.connect()
        robot.disconnect(torque=True)
        assert servos.writes == []
        start(robot)
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
        start(robot)
        assert left.torque == right.torque == {True}
        robot.disconnect(torque=torque)
        assert left.torque == right.torque == {bool(torque)}


def test_a_read_that_was_torn_keeps_no_later_call_from_the_motors(tmp_path, monkeypatch) -> None:
    """The SDK then took its port as in use for good: an arm could not be brought to rest, nor wheels be stopped."""
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        start(robot)
        with monkeypatch.context() as torn:
            line = robot.lerobot.bus.port_handler.ser
            torn.setattr(line, "read", Mock(side_effect=ConnectionError("does another program read the port?")))
            with pytest.raises(ConnectionError, match="another program"):
                robot.observe()
        robot.send(robot.observe().state)
        robot.disconnect(torque=True)


def test_a_read_that_hangs_keeps_no_last_word_from_the_motors(tmp_path, monkeypatch) -> None:
    go_on = threading.Event()
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        start(robot)
        state = robot.observe().state
        monkeypatch.setattr(robot.lerobot.bus.port_handler.ser, "read", lambda _: go_on.wait(30) and b"")
        reader = aside(robot.observe, "reader")
        assert robot.take_over(0.2)
        robot.send(state)
        robot.disconnect(torque=True)
        go_on.set()
        assert reader.exception(10) is not None, "it hung until the port was closed"


def test_an_arm_that_may_be_limp_is_said_to_be(tmp_path) -> None:
    """LeRobot takes the torque off to configure motors, and gives up at the first that answers with an error."""
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        servos.overloaded = {6}
        with pytest.raises(ConnectionError, match=r"joints may be limp now.*Overload"):
            start(robot)
        with pytest.raises(ConnectionError, match="may be limp"):
            robot.disconnect(torque=True)
        assert servos.torque == {False}, "what LeRobot left"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_camera_that_is_missing_drops_neither_arm(tmp_path, side: str) -> None:
    """The left one was configured before the right one's camera was tried."""
    with Servos(torque=True) as left, Servos(torque=True) as right:
        settings = pair(tmp_path, left, right)
        settings[f"{side}_arm_config"]["cameras"] = {"wrist": camera(index_or_path="/dev/video77")["front"]}
        robot = make_robot(settings, [], 30)
        robot.connect()
        with pytest.raises(CameraError, match=r"Camera wrist gives no frame: .*OpenCVCamera"):
            robot.observe()
        assert robot.read_state().shape == (12,)
        robot.disconnect(torque=True)
        assert left.writes == right.writes == []
        assert left.torque == right.torque == {True}


def test_a_robot_that_is_not_calibrated_is_told_nothing(tmp_path) -> None:
    """What it says of where it stands is not so: sent there, it leapt."""
    with Servos(torque=True) as servos:
        settings = servos.settings(tmp_path)
        calibration = tmp_path / "mine.json"
        calibration.write_text(calibration.read_text().replace('"range_max": 4095', '"range_max": 2000'))
        robot = make_robot({"type": "so101_follower", **settings}, [], 30)
        with pytest.raises(ConnectionError, match="is not calibrated"):
            robot.connect()
        with pytest.raises(ConnectionError, match="not calibrated"):
            robot.send(robot.read_state())
        robot.disconnect(torque=True)
        assert servos.writes == []


def test_an_arm_that_was_not_configured_is_not_said_to_be_limp(tmp_path) -> None:
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path), "port": "/dev/null"}, [], 30)
        with pytest.raises(ConnectionError, match="so101_follower: "):
            start(robot)
        assert servos.torque == {True}


def test_a_motor_that_answers_with_an_error_keeps_no_other_from_being_released(tmp_path) -> None:
    """A gripper that has squeezed for long is in overload. LeRobot left the motors after it stiff."""
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        start(robot)
        servos.overloaded = {2}
        with pytest.raises(RuntimeError, match="Overload"):
            robot.disconnect(torque=False)
        assert servos.torque == {False}


def test_a_cable_that_is_pulled_is_what_the_message_is_about(tmp_path, monkeypatch) -> None:
    """The run's last line was: error: (5, 'Input/output error')."""
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        start(robot)
        pulled = Mock(side_effect=termios.error(5, "Input/output error"))
        monkeypatch.setattr(robot.lerobot.bus.port_handler.ser, "flush", pulled)
        with pytest.raises(ConnectionError, match=r"so101_follower took no command: .*Input/output error.*its cable"):
            robot.send(np.zeros(6, np.float32))
        robot.disconnect(torque=True)


class HangingCamera:
    """Hangs as it is disconnected, until told."""

    height, width, is_connected = 48, 64, True

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def connect(self) -> None: ...

    def async_read(self) -> None: ...

    def disconnect(self) -> None:
        self.go_on.wait(30)


def test_a_camera_that_hangs_as_it_is_disconnected_keeps_no_arm(tmp_path, monkeypatch, caplog) -> None:
    """The other arm of two kept its torque, and an arm that was let go of was said not to be."""
    from lerobot.robots.so_follower import so_follower

    monkeypatch.setattr("longarm_edge.lerobot_robot.CAMERA_SECONDS", 0.2)
    camera = HangingCamera()
    monkeypatch.setattr(so_follower, "make_cameras_from_configs", lambda configs: dict.fromkeys(configs, camera))
    with Servos(torque=False) as left, Servos(torque=False) as right:
        front = {"front": {"type": "opencv", "index_or_path": 0, "width": 64, "height": 48, "fps": 30}}
        robot = make_robot(pair(tmp_path, left, right) | {"cameras": front}, [], 30)
        start(robot)
        robot.disconnect(torque=False)
        assert left.torque == right.torque == {False}
    assert "a camera could not be disconnected: it hangs" in caplog.text
    camera.go_on.set()


def test_an_object_that_is_forgotten_does_not_drop_the_arm(tmp_path: Path) -> None:
    """LeRobot's robots disconnect when they are collected, by what their configuration says."""
    with Servos(torque=False) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        start(robot)
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


@pytest.mark.parametrize(
    ("shape", "kind", "fine"),
    [
        ((480, 640, 3), "uint8", True),
        *(((480, 640, 3), kind, False) for kind in ("uint16", "float32", "bool", "int64")),
        *(
            (shape, "uint8", False)
            for shape in ((480, 640), (480, 640, 1), (480, 640, 4), (640, 480, 3), (3, 480, 640))
        ),
    ],
)
def test_frames_of_other_shapes_and_types_are_refused(tmp_path, monkeypatch, shape, kind: str, fine: bool) -> None:
    """Cast to bytes, one of 16 bits would be noise, and one of fractions black."""
    flags = ["--robot.port=/dev/null", f"--robot.calibration_dir={tmp_path}"]
    robot = make_robot({"type": "so101_follower", "cameras": camera()}, flags, 30)
    seen = dict.fromkeys(robot.spec.state_names, 0.0) | {"front": np.ones(shape, kind)}
    monkeypatch.setattr(robot, "_cameras", [])
    monkeypatch.setattr(robot.lerobot, "get_observation", lambda: seen)
    if fine:
        np.testing.assert_array_equal(robot.observe().images["front"], seen["front"])
        return
    # No fault of the bus: what a gripper was told to squeeze stays told
    with pytest.raises(CameraError) as caught:
        robot.observe()
    assert f"Camera front gave a frame of shape {shape} and type {kind}, not (480, 640, 3)" in str(caught.value)


def test_the_step_of_a_reading_is_told_when_no_command_is_on_its_way(tmp_path, monkeypatch) -> None:
    """Told before the turn came, a command would go out in between, and the chunk would leap by a step."""
    robot = make_robot(
        {"type": "so101_follower"}, ["--robot.port=/dev/null", f"--robot.calibration_dir={tmp_path}"], 30
    )
    slow, steps = Slow(), [7]
    monkeypatch.setattr(robot, "_ready", True)
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


def test_a_robot_that_takes_several_calls_is_looked_at_again_if_it_was_sent_on_meanwhile(tmp_path, monkeypatch) -> None:
    """The step was that from before: at each chunk the arm leapt by what it had moved while it was read."""
    from lerobot.robots.so_follower import SOFollower

    monkeypatch.setattr(SOFollower, "is_thread_safe", True, raising=False)
    flags = ["--robot.port=/dev/null", f"--robot.calibration_dir={tmp_path}"]
    robot = make_robot({"type": "so101_follower"}, flags, 30)
    monkeypatch.setattr(robot, "_ready", True)
    steps, looks, writers = [7], [], []

    def command() -> threading.Thread:
        def sent() -> None:
            steps[0] += 1

        writers.append(threading.Thread(target=robot.send, args=(np.zeros(6, np.float32), sent)))
        writers[-1].start()
        writers[-1].join(0.3)
        return writers[-1]

    def look() -> dict[str, float]:
        looks.append(command().is_alive())
        return dict.fromkeys(robot.spec.state_names, float(steps[0]))

    monkeypatch.setattr(robot.lerobot, "get_observation", look)
    monkeypatch.setattr(robot.lerobot, "send_action", lambda _: None)
    reading = robot.observe(lambda: steps[0])
    assert looks == [False, True], "commands wait for the second look alone"
    assert (reading.step, reading.state[0]) == (8, 8)
    for writer in writers:
        writer.join(5)
    assert steps == [9]


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


def test_an_answer_that_came_too_late_is_not_taken_for_that_to_the_next_call(tmp_path: Path) -> None:
    """Old answers on the line once stood for motors that were told nothing, torque and all."""
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        robot.connect()
        port = robot.lerobot.bus.port_handler
        robot.lerobot.bus.port_handler.writePort([0xFF, 0xFF, 1, 2, 1, 0xFB])  # a ping whose answer nobody reads
        deadline = time.monotonic() + 10
        while not port.ser.in_waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert port.ser.in_waiting
        with robot._turn():
            assert not port.ser.in_waiting
        robot.disconnect(torque=True)


@pytest.mark.parametrize("held", [True, False])
def test_motors_are_not_configured_once_the_robot_is_let_go_of(tmp_path, held: bool) -> None:
    """Ctrl-C while a camera was connected: LeRobot went on to configure, the process ended, and joints were limp."""
    entered, go_on = threading.Event(), threading.Event()
    with Servos(torque=held) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        connect = robot.lerobot.bus.connect
        robot.lerobot.bus.connect = lambda: (connect(), entered.set(), go_on.wait(30))
        connecting = aside(lambda: start(robot), "connect")
        assert entered.wait(10)
        assert robot.take_over(0.1)
        robot.disconnect(torque=True)
        go_on.set()
        with pytest.raises(ConnectionError):
            connecting.result(10)
        assert servos.torque == {held}


def test_motors_that_are_being_configured_are_waited_for(tmp_path) -> None:
    entered, go_on = threading.Event(), threading.Event()
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        configure = robot.lerobot.configure

        def slowly() -> None:
            robot.lerobot.bus.disable_torque()
            entered.set()
            go_on.wait(30)
            configure()

        robot.lerobot.configure = slowly
        connecting = aside(lambda: start(robot), "connect")
        assert entered.wait(10)
        assert not robot.take_over(0.1)
        go_on.set()
        assert robot.take_over(10)
        connecting.exception(10)
        robot.disconnect(torque=True)
        assert servos.torque == {True}


def test_a_robot_that_hangs_while_it_is_configured_is_said_to_be_limp(tmp_path) -> None:
    entered, go_on = threading.Event(), threading.Event()
    with Servos(torque=True) as servos:
        robot = make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30)
        robot.lerobot.configure = lambda: (robot.lerobot.bus.disable_torque(), entered.set(), go_on.wait(30))
        connecting = aside(lambda: start(robot), "connect")
        assert entered.wait(10)
        assert not robot.take_over(0.1)
        with pytest.raises(ConnectionError, match="may be limp"):
            robot.disconnect(torque=True)
        go_on.set()
        connecting.exception(10)


def test_two_programs_do_not_drive_one_robot(tmp_path) -> None:
    """The second took the torque off under the first, which went on without a word."""
    with Servos(torque=True) as servos:
        first, second = (make_robot({"type": "so101_follower", **servos.settings(tmp_path)}, [], 30) for _ in range(2))
        start(first)
        before = len(servos.writes)
        for _ in range(2):
            with pytest.raises(ConnectionError, match="Another program drives the robot at"):
                second.connect()
            second.disconnect(torque=False)
        assert len(servos.writes) == before
        first.send(first.read_state())
        first.disconnect(torque=True)
        start(second)
        second.disconnect(torque=True)


def test_a_port_is_seen_to_be_in_use_through_another_device_file(tmp_path) -> None:
    """As a container sees it: the file is its own, and so are its locks."""
    port, terminal = str(tmp_path / "ttyROBOT"), "/dev/tty57"
    try:
        os.mknod(port, stat.S_IFCHR | 0o600, Path(terminal).stat().st_rdev)
        os.close(os.open(port, os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        pytest.skip(f"no terminal to make a second file of: {error}")
    here, there = ([SimpleNamespace(config=SimpleNamespace(port=p))] for p in (terminal, port))
    first, second = Held(), Held()
    first.hold(here)
    first.shut()
    with pytest.raises(ConnectionError, match=f"Another program drives the robot at {port}"):
        second.hold(there)
    second.close()
    first.close()
    second.hold(there)
    second.shut()
    second.close()
