"""Which observations are worth a request: those that differ from the last answered one."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

# Width and height of the thumbnails that cameras are compared by: small enough to cost 0.1 ms, large enough that a cube
# on the table fills a cell
THUMBNAIL = (32, 24)


@dataclass(frozen=True)
class Look:
    """What the filter remembers of an observation: joint state and one thumbnail per camera."""

    state: np.ndarray
    thumbnails: Mapping[str, np.ndarray]


def look_at(state: np.ndarray, images: Mapping[str, np.ndarray]) -> Look:
    """Returns what the filter needs of an observation.

    Args:
      state: float32, shape (state_dim), robot units.
      images: RGB frames by camera, uint8, shape (height, width, 3).
    """
    return Look(state.copy(), {name: _thumbnail(frame) for name, frame in images.items()})


class ObservationFilter:
    """Drops an observation in which nothing moved since the last answered one.

    Only answered observations count, so that a lost request can never make its successors look redundant.
    """

    def __init__(self, similarity_tolerance: float, camera_tolerance: float) -> None:
        """Makes a filter that has seen nothing.

        Args:
          similarity_tolerance: Largest L2 distance of joint states that counts as the same, robot units. 0 turns the
            filter off.
          camera_tolerance: Largest difference in any cell and colour of the thumbnails that counts as the same, of 255.
            The largest and not the mean: a cube that moved fills 1 % of a frame, and vanishes in a mean.
        """
        self._similarity_tolerance = similarity_tolerance
        self._camera_tolerance = camera_tolerance
        self._answered: Look | None = None

    def is_redundant(self, look: Look) -> bool:
        """Returns whether look shows nothing new."""
        last = self._answered
        if last is None or self._similarity_tolerance <= 0 or last.thumbnails.keys() != look.thumbnails.keys():
            return False
        if np.linalg.norm(look.state - last.state) >= self._similarity_tolerance:
            return False
        return all(
            np.abs(thumbnail - last.thumbnails[name]).max() <= self._camera_tolerance
            for name, thumbnail in look.thumbnails.items()
        )

    def answered(self, look: Look) -> None:
        """Remembers look as the last observation that was answered."""
        self._answered = look

    def forget(self) -> None:
        """Forgets the past: the next observation is never redundant."""
        self._answered = None


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    # Averaging over each cell takes the sensor's noise out
    return cv2.resize(frame, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.int16)
