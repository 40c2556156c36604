"""Cameras taken apart from the motors: a camera that hangs must not stop an arm.

LeRobot's get_observation reads motors and cameras in one call. Longarm reads the cameras beforehand, while commands go
on, and hands their frames out when get_observation asks for them. A robot whose cameras are no LeRobot cameras is read
as it is.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
from lerobot.robots import Robot as LeRobot

from longarm_edge.aside import aside
from longarm_edge.lerobot_arms import composed_of

logger = logging.getLogger(__name__)

_READS = frozenset({"read", "async_read", "read_latest", "read_depth", "async_read_depth", "read_latest_depth"})
# A camera that takes longer to connect hangs, in seconds: some warm up for several
CONNECT_SECONDS = 20.0


class ApartCamera:
    """A camera in LeRobot's place of it. What it is asked for once is what capture asks it for from then on.

    For its robot it is connected from connect until disconnect: a robot with a dead camera can still be stopped, moved
    and let go of. Its reads fail, and say why.

    Attributes:
      name: Its robot's name for it.
      failure: Why it did not connect, if it did not.
    """

    def __init__(self, name: str, camera: Any) -> None:
        """Stands in for camera."""
        self.name = name
        self.failure: Exception | None = None
        self._camera = camera
        self._connected = False
        self._disconnecting: Future[None] | None = None
        self._serving = self._blind = False
        self._asked: list[tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]] = []
        self._held: dict[Any, Any] = {}

    def capture(self) -> None:
        """Reads what the robot usually asks for. Raises as the camera does."""
        if self.failure is not None:
            raise self.failure
        self._held = {asked: getattr(self._camera, asked[0])(*asked[1], **dict(asked[2])) for asked in self._asked}

    @property
    def is_connected(self) -> bool:
        """Whether it was connected and not disconnected since."""
        return self._connected or bool(self._camera.is_connected)

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connects it, or keeps why not: whoever wants a frame hears of it."""
        connecting = aside(lambda: self._camera.connect(*args, **kwargs), "camera")
        try:
            wait([connecting], CONNECT_SECONDS)
            if not connecting.done():
                raise TimeoutError(f"it has not connected for {CONNECT_SECONDS:g} s")
            connecting.result()
            self.failure = None
        except Exception as error:  # noqa: BLE001  # whatever its driver raises
            self.failure = error
        self._connected = True

    def disconnect(self) -> None:
        """Begins to disconnect it. One that fails or hangs in that keeps nobody from letting go of the motors."""
        self._connected = False
        self._disconnecting = aside(self._camera.disconnect, "camera")

    def __getattr__(self, name: str) -> Any:
        """Returns whatever else the camera has."""
        value = getattr(self._camera, name)
        if name not in _READS:
            return value

        def read(*args: Any, **kwargs: Any) -> Any:
            if self.failure is not None and not (self._serving and self._blind):
                raise self.failure
            if not self._serving:
                return value(*args, **kwargs)
            asked = (name, args, tuple(sorted(kwargs.items())))
            if asked not in self._asked:
                self._asked.append(asked)
            if asked not in self._held:
                if self._blind and (black := self._black(name)) is not None:
                    return black
                self._held[asked] = value(*args, **kwargs)
            return self._held[asked]

        return read

    def _black(self, read: str) -> np.ndarray | None:
        """Returns a frame that shows nothing, as read would return one; None where its size is not known."""
        size = (getattr(self._camera, "height", None), getattr(self._camera, "width", None))
        if None in size:
            return None
        return np.zeros((*size, 1), np.uint16) if "depth" in read else np.zeros((*size, 3), np.uint8)


def take_apart(robot: LeRobot) -> list[ApartCamera]:
    """Puts an ApartCamera in place of every camera of robot and of the robots it is made of, and returns them."""
    apart: dict[int, ApartCamera] = {}
    for part in composed_of(robot):
        cameras = getattr(part, "cameras", None)
        if not isinstance(cameras, dict):
            continue
        for name, camera in cameras.items():
            if hasattr(camera, "read_latest") or hasattr(camera, "async_read"):
                cameras[name] = apart.setdefault(id(camera), ApartCamera(name, camera))
    return list(apart.values())


def await_disconnected(cameras: Sequence[ApartCamera], seconds: float) -> None:
    """Waits up to so many seconds for those of cameras that are being disconnected, and says what went wrong."""
    leaving = [camera._disconnecting for camera in cameras if camera._disconnecting is not None]  # of this module
    done, hanging = wait(leaving, seconds)
    problems = [str(error) for future in done if (error := future.exception()) is not None]
    for problem in [*problems, *(f"it hangs for {seconds:g} s" for _ in hanging)]:
        logger.warning("a camera could not be disconnected: %s", problem)


@contextmanager
def serving(cameras: Sequence[ApartCamera], *, blind: bool = False) -> Iterator[None]:
    """Has cameras answer with what they captured last. For one observation at a time.

    A camera that has captured nothing yet is read; where blind, it answers with a black frame instead.
    """
    for camera in cameras:
        camera._serving, camera._blind = True, blind  # of this module
    try:
        yield
    finally:
        for camera in cameras:
            camera._serving = False
