"""The simulated arm, which writes down what is done to it, and gets stuck when told to. For processes under test.

LeRobot finds it by the name of its distribution, when this directory is on PYTHONPATH.
"""

import ctypes
import json
import time
from dataclasses import dataclass
from pathlib import Path

from lerobot.robots import RobotConfig

from lerobot_robot_longarm_sim import LongarmSim, LongarmSimConfig


@RobotConfig.register_subclass("recording_arm")
@dataclass(kw_only=True)
class RecordingArmConfig(LongarmSimConfig):
    """Configuration.

    Attributes:
      log: Gets a line of JSON per event.
      stuck: While this file exists, a command never returns; if it says "hard", nor does any other thread go on.
      exits: Whether a command raises SystemExit.
    """

    width: int = 64
    height: int = 48
    renderer: str = "plain"
    log: str
    stuck: str = ""
    exits: bool = False


class RecordingArm(LongarmSim):
    """Found by LeRobot under the name of its configuration."""

    config_class = RecordingArmConfig
    name = "recording_arm"

    def _write(self, event: str, **facts: object) -> None:
        with Path(self.config.log).open("a") as log:
            log.write(json.dumps({"event": event, **facts}) + "\n")

    def connect(self, calibrate: bool = True) -> None:
        super().connect(calibrate)
        self._write("connect")

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        while self.config.stuck and Path(self.config.stuck).exists():
            if Path(self.config.stuck).read_text() == "hard":
                ctypes.PyDLL(None).sleep(60)  # it keeps the interpreter to itself
            time.sleep(0.1)
        if self.config.exits:
            raise SystemExit(0)
        sent = super().send_action(action)
        self._write("command", action=sent)
        return sent

    def disconnect(self) -> None:
        connected = self.is_connected
        super().disconnect()
        if connected:
            self._write("disconnect", torque=not self.config.disable_torque_on_disconnect)
