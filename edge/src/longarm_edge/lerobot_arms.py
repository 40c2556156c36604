"""The torque of a LeRobot robot, which may be composed of several arms."""

import logging
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from lerobot.robots import Robot as LeRobot

from longarm_edge.actions import ActionKinds
from longarm_edge.robot import Torque

logger = logging.getLogger(__name__)

_FLAG = "disable_torque_on_disconnect"
# Robots of LeRobot's whose drivers have no setting, by what they do in disconnect (read in lerobot 0.6.1)
_BY_NAME = {
    "lekiwi_client": Torque.KEPT,  # closes its sockets; the host on the robot keeps the motors
    "unitree_g1": Torque.LOST,  # sends zero torque
}


class ArmsTorque:
    """What becomes of the torque of every arm of a robot.

    LeRobot has a flag for it, disable_torque_on_disconnect, in the configuration of each arm. A robot that is made of
    arms has the arms as attributes, with configurations of their own.
    """

    def __init__(self, robot: LeRobot) -> None:
        """Finds robot's arms and what their configurations say."""
        self.arms = tuple(part for part in composed_of(robot) if not _parts(part))
        configs: list[Any] = [getattr(arm, "config", None) for arm in self.arms]
        self._configured = [(c, c.disable_torque_on_disconnect) for c in configs if hasattr(c, _FLAG)]
        self.at_disconnect = _common({_of(arm) for arm in self.arms if _has_joints(arm)})

    def choose(self, torque: bool | None) -> None:
        """Decides for the next disconnect: whether the motors keep their torque, None for what was configured."""
        for config, configured in self._configured:
            config.disable_torque_on_disconnect = configured if torque is None else not torque

    def motors_answer(self) -> bool:
        """Returns whether a bus of any arm is open."""
        return any(getattr(getattr(arm, "bus", None), "is_connected", False) for arm in self.arms)

    def closed(self) -> list[LeRobot]:
        """Returns the arms whose bus has closed by itself: nothing can be said to their motors any more."""
        return [arm for arm in self.arms if getattr(getattr(arm, "bus", None), "is_connected", True) is False]

    def free_ports(self) -> None:
        """Has every port taken as free, for whoever has the turn: a call that was torn or hangs leaves it in use."""
        for arm in self.arms:
            port: Any = getattr(getattr(arm, "bus", None), "port_handler", None)
            if hasattr(port, "is_using"):  # those of Feetech and Dynamixel
                port.is_using = False
                # An answer that came after it was given up would be taken for that to the next call
                if getattr(port, "is_open", False):
                    with suppress(OSError, termios.error):
                        port.ser.reset_input_buffer()

    def disconnect_motors(self) -> bool:
        """Lets go of every arm's motors past LeRobot's own disconnect. Returns whether that worked for all of them."""
        done = [_disconnect_motors(arm) for arm in self.arms]  # of every one, also after one that failed
        return all(done)


def composed_of(robot: LeRobot) -> list[LeRobot]:
    """Returns robot and the robots that it is made of, and those that they are made of."""
    return [robot, *(deeper for part in _parts(robot) for deeper in composed_of(part))]


@contextmanager
def putting_off_configuring(robot: LeRobot) -> Iterator[list[Callable[[], None]]]:
    """Keeps LeRobot from configuring motors as it connects to them. Yields what it would have called."""
    parts = composed_of(robot)
    put_off: list[Callable[[], None]] = []
    for part in parts:
        part.configure = partial(put_off.append, part.configure)
    try:
        yield put_off
    finally:
        for part in parts:
            del part.configure


def _parts(robot: LeRobot) -> list[LeRobot]:
    return [part for value in vars(robot).values() for part in _flat(value) if isinstance(part, LeRobot)]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _of(arm: LeRobot) -> Torque:
    if hasattr(getattr(arm, "config", None), _FLAG):
        return Torque.CHOSEN
    return _BY_NAME.get(arm.name, Torque.UNKNOWN)


def _has_joints(arm: LeRobot) -> bool:
    return not ActionKinds.from_names(tuple(arm.action_features), ()).is_velocity.all()


def _common(kinds: set[Torque]) -> Torque:
    """Returns what holds for all of kinds."""
    if len(kinds) == 1:
        return next(iter(kinds))
    # Arms that can be told may be told what the others do
    others = kinds - {Torque.CHOSEN}
    return next(iter(others)) if len(others) == 1 else Torque.UNKNOWN if others else Torque.KEPT


def _disconnect_motors(arm: LeRobot) -> bool:
    """Disconnects the bus of one arm. Returns whether it is disconnected then."""
    bus: Any = getattr(arm, "bus", None)
    if bus is None or not hasattr(bus, "is_connected"):
        return False
    try:
        if bus.is_connected:
            if hasattr(arm, "stop_base"):
                arm.stop_base()
            release = getattr(arm.config, _FLAG, False)
            if release and hasattr(bus, "disable_torque"):
                _release_each(bus)
            bus.disconnect(release)
    except Exception:
        logger.exception("the motors of %s could not be let go of", arm)
    return not bus.is_connected


def _release_each(bus: Any) -> None:
    """Takes the torque off every motor that lets it: LeRobot gives up at the first that answers with an error."""
    for motor in bus.motors:
        try:
            bus.disable_torque(motor)
        except Exception as error:  # noqa: BLE001  # it is said when the bus is disconnected
            logger.debug("%s", error)
