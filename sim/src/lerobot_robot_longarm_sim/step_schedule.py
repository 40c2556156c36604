"""When physics steps are due, so that simulated time keeps up with real time."""


class StepSchedule:
    """Counts physics steps against a clock, from an absolute origin: lateness never accumulates.

    A world that was starved of processor time catches up on at most `max_backlog_seconds` and lets the rest of the
    time pass unsimulated. Stepping through all of it would take longer still, and the backlog would grow for ever.
    """

    def __init__(self, timestep_seconds: float, now: float, max_backlog_seconds: float = 0.1) -> None:
        """Starts with no step due; `now` is in seconds of the clock that later calls use."""
        self.skipped_seconds = 0.0
        self._timestep = timestep_seconds
        self._origin = now
        self._max_backlog = max(1, round(max_backlog_seconds / timestep_seconds))
        self._taken = 0

    def take_due(self, now: float) -> int:
        """Returns how many steps to take at `now`, and counts them as taken."""
        due = int((now - self._origin) / self._timestep) - self._taken
        if due > self._max_backlog:
            skipped = (due - self._max_backlog) * self._timestep
            self._origin += skipped
            self.skipped_seconds += skipped
            due = self._max_backlog
        if due > 0:
            self._taken += due
        return max(due, 0)

    def due_time(self, steps: int) -> float:
        """Returns when the last of the next `steps` steps falls due."""
        return self._origin + (self._taken + steps) * self._timestep
