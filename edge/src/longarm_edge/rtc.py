"""Real-time chunking on the edge: what a request says of the actions that are still to be executed."""

import logging
import math
from collections.abc import Sequence

import numpy as np

from longarm_edge.action_queue import QueuedAction
from longarm_wire.rtc import RtcConfig, RtcPrefix

logger = logging.getLogger(__name__)


class RealTimeChunking:
    """Lets each new chunk follow the one that is being executed, so that the arm does not jump where they meet."""

    def __init__(self, config: RtcConfig, fps: float) -> None:
        """Takes the session's settings and the control rate in ticks per second."""
        self.config = config
        self._fps = fps
        self._warned = False

    def prefix(self, coming: Sequence[QueuedAction], round_trip: float | None) -> RtcPrefix | None:
        """Returns what to send of the actions to come, or None if the new chunk has nothing to follow.

        Args:
          coming: Actions for the observation's step and the steps after it.
          round_trip: Seconds from capture to merge to expect, None if none is known.
        """
        known = [(action.model_values, action.values) for action in coming[: self.config.execution_horizon]]
        pairs = [(model, robot) for model, robot in known if model is not None]
        if not pairs or len(pairs) < len(known):
            return None
        # Steps, not ticks: once all that is coming is executed the arm stands, and the plan with it
        delay = min(math.ceil((round_trip or 0.0) * self._fps), len(coming))
        if delay >= self.config.execution_horizon and not self._warned:
            self._warned = True
            logger.warning(
                "%d actions are executed while a chunk comes, and rtc.execution_horizon is %d: the arm jumps where "
                "chunks meet. Set rtc.execution_horizon to %d or more.",
                delay,
                self.config.execution_horizon,
                2 * delay,
            )
        model, robot = zip(*pairs, strict=True)
        return RtcPrefix(delay, np.stack(model), np.stack(robot))
