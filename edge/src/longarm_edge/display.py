"""The live display: frames go to a process that shows them in Rerun."""

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Any

from longarm_edge.frame_pipe import FramePipe, FramePipeError
from longarm_edge.observer import Frame
from longarm_wire.settings import ConfigurationError
from longarm_wire.specs import RobotSpec

logger = logging.getLogger(__name__)

# A viewer that lags shows fewer ticks rather than old ones
CAPACITY = 5
NO_SCREEN = (
    "--display: there is no screen here for Rerun's viewer. Start `rerun` on a machine with one and pass "
    "--display=HOST:9876, or write a file to look at later: --display=run.rrd"
)
CLOSE_SECONDS = 10.0


class Display:
    """A sink that shows. What goes wrong after the start costs the picture and nothing else."""

    def __init__(self, where: str, spec: RobotSpec) -> None:
        """Makes a display at rest.

        Args:
          where: The setting display.
          spec: The robot's names and cameras.

        Raises:
          ConfigurationError: Rerun is missing, there is no screen for its viewer, or where cannot be understood.
        """
        self._pipe = FramePipe("longarm_edge.rerun_display", _job(where, spec), CAPACITY)
        self._opens_viewer = where == "spawn"
        self._is_told = False

    def start(self) -> None:
        """Starts the process and returns at once."""
        self._pipe.start()

    def is_ready(self, timeout: float) -> bool:
        """Waits timeout seconds at most for the viewer, the connection or the file to be open.

        A viewer of our own that does not open is no fault of the settings: the run goes on without it.

        Raises:
          ConfigurationError: The file or the connection cannot be opened.
        """
        try:
            return self._pipe.is_ready(timeout)
        except FramePipeError as error:
            if self._opens_viewer:
                if not self._is_told:
                    logger.warning("--display: %s. The run goes on without a picture", error)
                self._is_told = True
                return True
            raise ConfigurationError([f"--display: {error}"]) from error

    def offer(self, frame: Frame) -> None:
        """Takes frame, or leaves it out if the display lags."""
        self._pipe.offer(frame)

    def close(self) -> str | None:
        """Ends the display. A viewer's window stays. Returns what went wrong, if anything did."""
        try:
            logger.debug("displayed: %s", self._pipe.close(CLOSE_SECONDS))
        except FramePipeError as error:
            if not self._is_told:
                logger.warning("The display has failed: %s", error)
            return str(error)
        return None


def _job(where: str, spec: RobotSpec) -> dict[str, Any]:
    if importlib.util.find_spec("rerun") is None:
        raise ConfigurationError(
            ["--display needs rerun-sdk, not installed here: pip install -e 'edge[display]' in a checkout"]
        )
    host, _, port = where.rpartition(":")
    if where == "spawn":
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise ConfigurationError([NO_SCREEN])
    elif where.endswith(".rrd"):
        where = str(Path(where).expanduser().resolve())
    elif not host or not port.isdigit():
        raise ConfigurationError([f"--display: expected spawn, HOST:PORT or FILE.rrd but found {where!r}"])
    return {
        "where": where,
        "state_names": list(spec.state_names),
        "action_names": list(spec.action_names),
        "cameras": [camera.name for camera in spec.cameras],
    }
