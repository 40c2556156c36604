"""Whether an observation is one: some drivers hand out the last one again where their robot has sent nothing new.

LeRobot's lekiwi_client does so, whose robot sends over the network by itself. A link that is dead then looks like an
arm that stands still. And what the robot has sent while nobody looked is in store, and is handed out first.
"""

import time
from collections.abc import Mapping
from typing import Any

# A robot that sends by itself and has sent nothing new for this long is silent, in seconds: ten times what one takes at
# 30 a second
SILENCE_SECONDS = 0.3


class News:
    """Knows the observation that was handed out last."""

    def __init__(self, *, repeats: bool) -> None:
        """Has seen none; repeats: whether the driver is known to hand out one again until there is another."""
        self._varies = repeats
        self._last: Mapping[str, Any] | None = None
        self._since = 0.0

    def is_new(self, observation: Mapping[str, Any]) -> bool:
        """Returns whether observation is another one than the last.

        A driver that always hands out the same object, and writes to it, says nothing by it: that one is always new.

        Raises:
          ConnectionError: There was none but the last for SILENCE_SECONDS.
        """
        now = time.monotonic()
        if observation is not self._last:
            self._varies |= self._last is not None
            self._last, self._since = observation, now
            return True
        if self._varies and now - self._since > SILENCE_SECONDS:
            raise ConnectionError(
                f"it has sent nothing new for more than {SILENCE_SECONDS:g} s; check that it is on, that its host "
                "runs, and the network to it"
            )
        return not self._varies
