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

    For its robot it is connected from connect until disconnect, so that a robot with a dead camera can still be
    stopped, moved and let go of. It connects beside everything else; its reads wait for that, or say why it failed.

    Attributes:
      name: Its robot's name for it.
    """

    def __init__(self, name: str, camera: Any, before: "ApartCamera | None" = None) -> None:
        """Stands in for camera, which connects after the one before: drivers share what they open."""
        self.name = name
        self._camera = camera
        self._before = before
        self._connecting: Future[None] | None = None
        self._failure: Exception | None = None
        self._is_connected = False
        self._disconnecting: Future[None] | None = None
        self._serving = self._blind = False
        self._asked: list[tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]] = []
        self._held: dict[Any, Any] = {}

    def capture(self) -> None:
        """Reads what the robot usually asks for. Raises as the camera does."""
        self._await_connected()
        self._held = {asked: getattr(self._camera, asked[0])(*asked[1], **dict(asked[2])) for asked in self._asked}

    @property
    def is_connected(self) -> bool:
        """Whether connect was called, and disconnect was not since."""
        return self._is_connected or bool(self._camera.is_connected)

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Begins to connect it."""
        before, self._failure = self._before, None

        def connect() -> None:
            if before is not None and before._connecting is not None:  # of this class
                wait([before._connecting], CONNECT_SECONDS)
            self._camera.connect(*args, **kwargs)

        self._connecting = aside(connect, "camera")
        self._is_connected = True

    def disconnect(self) -> None:
        """Begins to disconnect it. One that fails or hangs in that keeps nobody from letting go of the motors."""
        connecting, self._is_connected = self._connecting, False

        def disconnect() -> None:
            # One that never connected has nothing to be disconnected from
            if connecting is None or connecting.exception() is None:
                self._camera.disconnect()

        self._disconnecting = aside(disconnect, "camera")

    def _await_connected(self) -> None:
        """Returns once it is connected. Raises as its driver did, or TimeoutError, and at once from then on."""
        connecting = self._connecting
        if self._failure is not None:
            raise self._failure
        if connecting is None:
            return
        wait([connecting], CONNECT_SECONDS)
        try:
            if not connecting.done():
                raise TimeoutError(f"it has not connected for {CONNECT_SECONDS:g} s")
            connecting.result()
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever its driver raises
            self._failure = error if isinstance(error, Exception) else RuntimeError(f"its driver exits: {error}")
            raise self._failure from None

    def __getattr__(self, name: str) -> Any:
        """Returns whatever else the camera has."""
        value = getattr(self._camera, name)
        if name not in _READS:
            return value

        def read(*args: Any, **kwargs: Any) -> Any:
            if not self._serving:
                self._await_connected()
                return value(*args, **kwargs)
            asked = (name, args, tuple(sorted(kwargs.items())))
            if asked not in self._asked:
                self._asked.append(asked)
            if asked not in self._held:
                if self._blind and (black := self._black(name)) is not None:
                    return black
                self._await_connected()
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
    last: ApartCamera | None = None
    for part in composed_of(robot):
        cameras = getattr(part, "cameras", None)
        if not isinstance(cameras, dict):
            continue
        for name, camera in cameras.items():
            if hasattr(camera, "read_latest") or hasattr(camera, "async_read"):
                last = cameras[name] = apart.setdefault(id(camera), ApartCamera(name, camera, last))
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
