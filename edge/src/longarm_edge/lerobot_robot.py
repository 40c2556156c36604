"""The edge's only door to LeRobot: a robot of any type, as names, arrays and two calls."""

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import logging
import pkgutil
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import draccus
import lerobot.cameras
import lerobot.robots
import numpy as np
import yaml
from lerobot.robots import Robot as LeRobot
from lerobot.robots import RobotConfig, make_robot_from_config
from lerobot.utils.errors import DeviceNotConnectedError
from lerobot.utils.import_utils import register_third_party_plugins

from longarm_edge import ports
from longarm_edge.lerobot_arms import ArmsTorque, composed_of, putting_off_configuring
from longarm_edge.lerobot_cameras import await_disconnected, serving, take_apart
from longarm_edge.news import News
from longarm_edge.robot import CameraError, RobotReading, UnheardError
from longarm_edge.turns import Turns
from longarm_wire.settings import ConfigurationError
from longarm_wire.specs import CameraSpec, RobotSpec

logger = logging.getLogger(__name__)

# Cameras get this long to be disconnected, all of them together, in seconds, after the motors were let go of
CAMERA_SECONDS = 5.0
# Drivers of LeRobot's that keep what their robot sends in store, and hand out the last again once it is empty (read in
# lerobot 0.6.1)
STORING = frozenset({"lekiwi_client"})
# Pause until a driver that had nothing new is asked again, and how long one may hand out its store, in seconds
NEWS_SECONDS, STORE_SECONDS = 0.01, 0.3


@dataclass
class _Flags:
    """What draccus parses LeRobot's --robot.* flags into."""

    robot: RobotConfig = field(default=None)  # draccus fills it or fails


def parse_robot(settings: Mapping[str, Any], flags: Sequence[str]) -> RobotConfig:
    """Returns LeRobot's configuration of the robot.

    Args:
      settings: The robot setting; flags win over it.
      flags: LeRobot's own, such as --robot.type=so101_follower.

    Raises:
      ConfigurationError: No robot is named, the type is unknown, or LeRobot refuses a value.
    """
    _register_all()
    if not settings and not flags:
        raise ConfigurationError(["No robot is configured. Pass --robot.type=… or set LONGARM_EDGE_ROBOT."])
    named = _named(settings, flags)
    known = sorted(RobotConfig.get_known_choices())
    if named is not None and named not in known:
        hint = difflib.get_close_matches(str(named), known, n=1)
        meant = f" (did you mean {hint[0]}?)" if hint else ""
        listed = f"Known are {', '.join(known)}. A third-party robot comes in a package named lerobot_robot_*."
        raise ConfigurationError([f"--robot.type: there is no robot type {named!r}{meant}. {listed}"])
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"robot": dict(settings)} if settings else {}, file)
        file.flush()
        # draccus parses with argparse, which prints every flag of every robot and exits where it knows one not
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                return draccus.parse(_Flags, config_path=file.name if settings else None, args=list(flags)).robot
        except Exception as error:
            raise ConfigurationError([f"--robot: LeRobot refuses this configuration: {_in_full(error)}"]) from error
        except SystemExit as error:
            why = said.getvalue().strip().rpartition("error: ")[2]
            fields = dataclasses.fields(RobotConfig.get_choice_class(named)) if named in known else ()
            has = f". A {named} has {', '.join(f'--robot.{f.name}' for f in fields)}" if fields else ""
            raise ConfigurationError([f"--robot: LeRobot refuses one of the --robot.* flags: {why}{has}"]) from error


def make_robot(
    settings: Mapping[str, Any], flags: Sequence[str], fps: float, *, cameras: bool = True
) -> "LeRobotRobot":
    """Returns the robot that parse_robot finds, not yet connected. Raises as parse_robot and LeRobotRobot do.

    Without cameras, those of its configuration are left out: an arm can be let go of even when one of them hangs.
    """
    config = parse_robot(settings, flags)
    if not cameras:
        _leave_out_cameras(config)
    return LeRobotRobot(config, fps, _named(settings, flags))


class LeRobotRobot:
    """A LeRobot robot of any type as a longarm_edge.robot.Robot."""

    def __init__(self, config: RobotConfig, fps: float, robot_type: str | None = None) -> None:
        """Makes the robot without touching the hardware.

        Args:
          config: LeRobot's configuration.
          fps: Ticks per second.
          robot_type: The user's word for the type, for messages; None for LeRobot's.

        Raises:
          ConfigurationError: LeRobot cannot make this robot (a missing extra, say), or it has no action values.
        """
        try:
            self._robot: LeRobot = make_robot_from_config(config)
        except (Exception, SystemExit) as error:
            raise ConfigurationError([f"--robot: LeRobot cannot make a {config.type}: {_in_full(error)}"]) from error
        self.spec = _spec(self._robot, robot_type or config.type, fps)
        self._cameras = take_apart(self._robot)
        self._torque = ArmsTorque(self._robot)
        self.torque_at_disconnect = self._torque.at_disconnect
        # LeRobot then reads where the joints stand before each command
        self._asks_first = any(getattr(arm.config, "max_relative_target", None) is not None for arm in self.arms)
        # A robot that says so takes calls from several threads: a command then need not wait for a slow observation
        self._turns = Turns(several=getattr(self._robot, "is_thread_safe", False))
        self._observing = threading.Lock()
        self._stores = self._robot.name in STORING
        self._news = News(repeats=self._stores)
        self._ports = ports.Held()
        self._touched = self._ready = False
        self._configure: list[Callable[[], None]] = []
        # Whether motors are being configured, or were when that failed
        self._limp = False

    @property
    def lerobot(self) -> LeRobot:
        """LeRobot's own object, for looking at what only some robots have."""
        return self._robot

    @property
    def arms(self) -> tuple[LeRobot, ...]:
        """LeRobot's objects that have motors of their own: of a robot composed of others, those."""
        return self._torque.arms

    def connect(self) -> None:
        """Connects to the hardware, and leaves the motors as they are. An uncalibrated robot is refused.

        An arm that holds goes on holding, and a limp one stays limp. Cameras connect meanwhile; observe waits for them.

        Raises:
          ConnectionError: LeRobot cannot connect, or the robot is not calibrated. Let go of it all the same.
        """
        with self._turn(), putting_off_configuring(self._robot) as put_off:
            self._ports.close()
            self._ports.hold(composed_of(self._robot))
            self._touched = True
            # Whatever happens from here on, a torque that is on stays on until disconnect says otherwise
            self._torque.choose(True)
            try:
                # Robots without motors of their own leave the argument out
                takes_it = "calibrate" in inspect.signature(self._robot.connect).parameters
                self._robot.connect(**({"calibrate": False} if takes_it else {}))
            except (Exception, SystemExit) as error:
                raise ConnectionError(
                    f"Cannot connect to the robot {self.spec.robot_type}: {_in_full(error)}"
                ) from error
            self._ports.shut()
            # None is no answer, and comes from robots that have nothing to calibrate. Calibration asks questions
            if self._robot.is_calibrated is False:
                raise ConnectionError(
                    f"The robot {self.spec.robot_type} is not calibrated. Run lerobot-calibrate with the same flags."
                )
            self._configure, self._ready = put_off, True

    def configure(self) -> None:
        """Has LeRobot write its settings to the motors, which drops the arm for a moment and leaves it stiff.

        Raises:
          ConnectionError: The motors do not take them. Joints may be limp then.
        """
        with self._turn():
            self._limp = bool(self._configure)
            try:
                for configure in self._configure:
                    # Half configured, motors have no torque: whoever lets go of the robot meanwhile waits for it
                    with self._turns.commanding():
                        configure()
            except (Exception, SystemExit) as error:
                raise ConnectionError(
                    f"Cannot configure the motors of the robot {self.spec.robot_type}, and its joints may be limp now: "
                    f"{_in_full(error)}"
                ) from error
            self._limp = False

    def observe(self, next_step: Callable[[], int] = lambda: 0) -> RobotReading:
        """Returns what the robot sees and feels now. Commands wait for its motors at most, never for a camera."""
        with self._observing:
            for camera in self._cameras:
                try:
                    camera.capture()
                except Exception as error:
                    raise CameraError(f"Camera {camera.name} gives no frame: {_in_full(error)}") from error
            raw, step = self._look(next_step)
        self._check_complete(raw, self.spec.state_names)
        if missing := [camera.name for camera in self.spec.cameras if camera.name not in raw]:
            raise CameraError(f"The robot {self.spec.robot_type} gave no frame of {', '.join(missing)}")
        images = {camera.name: np.asarray(raw[camera.name]) for camera in self.spec.cameras}
        for spec in self.spec.cameras:
            # What is of another size would have to be squeezed into the one that is agreed with the policy, and how
            # bright other values than bytes are nobody knows
            found = images[spec.name]
            if found.shape != (*spec.size, 3) or found.dtype != np.uint8:
                what = f"a frame of shape {found.shape} and type {found.dtype}, not {(*spec.size, 3)} and uint8"
                raise CameraError(f"Camera {spec.name} gave {what}")
        return RobotReading(self._state(raw), images, step=step)

    def read_state(self) -> np.ndarray:
        """Returns what the robot feels now, float32 of shape (state_names). No camera is waited for."""
        # Cameras show what they showed last, or nothing
        raw, _ = self._look(blind=True)
        self._check_complete(raw, self.spec.state_names)
        return self._state(raw)

    def send(self, command: np.ndarray, sent: Callable[[], None] = lambda: None) -> None:
        """Sends one command, float32 of shape (action_names), robot units, and tells sent before anything is read.

        See longarm_edge.robot.Robot.send.
        """
        action = dict(zip(self.spec.action_names, command.tolist(), strict=True))
        with self._turn(commands=True):
            if not self._ready:
                # What it says of where its joints stand may not be so
                raise ConnectionError(f"The robot {self.spec.robot_type} is not connected, or not calibrated")
            try:
                self._robot.send_action(action)
            except (OSError, termios.error) as error:  # what a pulled cable raises says of itself that it is an "error"
                why = f"The robot {self.spec.robot_type} took no command: {error}. Check its power and its cable."
                raise (UnheardError if self._asks_first and _is_silence(error) else ConnectionError)(why) from error
            sent()

    def take_over(self, seconds: float) -> bool:
        """Waits for a call in flight, and then for none any more; see longarm_edge.robot.Robot."""
        return self._turns.take_over(seconds)

    def disconnect(self, *, torque: bool | None) -> None:
        """Lets go of the hardware, of every arm of it. Does nothing if connect was never called.

        Args:
          torque: Whether the motors keep their torque; None for what the robot's own configuration says.

        Raises:
          Exception: Whatever LeRobot raises. The torque may not be as it was asked for.
        """
        with self._turn():
            if not self._touched or not (self._ready or self._robot.is_connected or self._torque.motors_answer()):
                self._ports.close()
                return
            self._torque.choose(torque)
            closed = self._torque.closed() if self._ready else []
            try:
                self._robot.disconnect()
            except Exception as error:
                # LeRobot refuses to disconnect a robot of which a part is gone; the rest of it still has to be left
                if not self._torque.disconnect_motors():
                    raise
                logger.warning("%s was let go of, but for: %s", self.spec.robot_type, error)
            finally:
                await_disconnected(self._cameras, CAMERA_SECONDS)
                self._ports.close()
            # Whoever was interrupted meanwhile has not heard it
            if self._limp and torque is not False:
                raise ConnectionError("its joints may be limp: LeRobot was configuring its motors")
            if closed and torque is False:
                arms = ", ".join(map(str, closed))
                raise ConnectionError(f"the bus of {arms} had closed: its torque was not taken off")

    def _look(self, next_step: Callable[[], int] = lambda: 0, *, blind: bool = False) -> tuple[Mapping[str, Any], int]:
        """Returns what LeRobot observes, and the step that was next when the motors were read. Waits for news.

        Raises:
          ConnectionError: There are none.
          Exception: Whatever else the driver raises.
        """
        began, alone = time.monotonic(), False
        # What a robot has sent while nobody looked may be old: only what comes once nothing is left of it is current
        current = not self._stores
        while True:
            with self._turn(alone=alone), serving(self._cameras, blind=blind):
                undisturbed = self._turns.lull()
                step = next_step()
                raw = self._robot.get_observation()
                # A robot that takes several calls may have been sent on meanwhile. Whether its motors were read before
                # or after that nobody knows: with the wrong step the arm would leap, or go back. So it is looked at
                # once more, and commands wait for that
                certain = alone or blind or undisturbed()
            if not self._news.is_new(raw):
                current = True
                time.sleep(NEWS_SECONDS)
            elif certain and (current or time.monotonic() - began > STORE_SECONDS):
                return raw, step
            alone = alone or not certain

    def _check_complete(self, raw: Mapping[str, Any], names: Sequence[str]) -> None:
        if missing := [name for name in names if name not in raw]:
            raise ConnectionError(f"The robot {self.spec.robot_type} gave no value for {', '.join(missing)}")

    def _state(self, raw: Mapping[str, Any]) -> np.ndarray:
        return np.array([raw[name] for name in self.spec.state_names], np.float32)

    @contextlib.contextmanager
    def _turn(self, *, commands: bool = False, alone: bool = False) -> Iterator[None]:
        with self._turns.take(commands=commands, alone=alone):
            self._torque.free_ports()
            try:
                yield
            except Exception:
                raise
            except BaseException as error:
                # A driver that exits, or whose binding panics, must not end the program beside its stop rule
                if threading.current_thread() is threading.main_thread() and not isinstance(error, SystemExit):
                    raise
                raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _is_silence(error: Exception) -> bool:
    """Returns whether motors that did not answer are all that is wrong, as far as LeRobot knows."""
    return isinstance(error, ConnectionError) and not isinstance(error, DeviceNotConnectedError)


def _leave_out_cameras(config: Any) -> None:
    """Empties the cameras of config and of the arms' configurations within it."""
    if isinstance(getattr(config, "cameras", None), dict):
        config.cameras = {}
    for arm in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, arm.name)) and not isinstance(value, type):
            _leave_out_cameras(value)


def _in_full(error: BaseException) -> str:
    """Returns what error says, and the innermost cause if it keeps that to itself, as draccus and drivers do."""
    innermost = error
    while cause := innermost.__cause__ or (None if innermost.__suppress_context__ else innermost.__context__):
        innermost = cause
    said, cause_said = (" ".join(str(one).split()) for one in (error, innermost))  # in one line
    return said if cause_said in said else f"{said} ({cause_said})"


def _named(settings: Mapping[str, Any], flags: Sequence[str]) -> str | None:
    """Returns the type in the user's words: LeRobot has several names for some robots, and tells the first."""
    from_flags = [flag.removeprefix("--robot.type=") for flag in flags if flag.startswith("--robot.type=")]
    return from_flags[-1] if from_flags else settings.get("type")


def _register_all() -> None:
    """Makes LeRobot's robots and cameras, and installed plugins, known by their type."""
    for package in (lerobot.robots, lerobot.cameras):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.ispkg:
                try:
                    importlib.import_module(module.name)
                except ImportError as error:  # an extra that is not installed: only its type is missing
                    logger.debug("%s is not available: %s", module.name, error)
    register_third_party_plugins()


def _spec(robot: LeRobot, robot_type: str, fps: float) -> RobotSpec:
    features = robot.observation_features
    cameras = {name: shape for name, shape in features.items() if isinstance(shape, tuple) and len(shape) == 3}
    action_names = tuple(robot.action_features)
    if not action_names:
        raise ConfigurationError([f"--robot: a {robot_type} has no action values"])
    return RobotSpec(
        robot_type=robot_type,
        action_names=action_names,
        state_names=tuple(name for name, kind in features.items() if not isinstance(kind, tuple)),
        # A depth map has one channel and is no frame that a policy of this protocol looks at
        cameras=tuple(CameraSpec(name, s[0], s[1]) for name, s in cameras.items() if s[2] == 3),
        fps=fps,
    )
