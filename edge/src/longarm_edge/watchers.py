"""Who watches a run: the recorder and the display, where they are wanted."""

from collections.abc import Callable
from contextlib import ExitStack

from longarm_edge.display import Display
from longarm_edge.recorder import START_SECONDS, Recorder
from longarm_edge.schedule import Clock
from longarm_edge.settings import EdgeSettings
from longarm_edge.trace import Trace
from longarm_wire.settings import ConfigurationError
from longarm_wire.specs import RobotSpec


class Watchers:
    """The sinks that settings ask for, from start to close.

    Attributes:
      sinks: Get a frame of every tick; empty if nobody watches.
      problem: What went wrong with the recording, once it is closed.
    """

    def __init__(self, settings: EdgeSettings, spec: RobotSpec, trace: Trace) -> None:
        """Makes them at rest.

        Raises:
          ConfigurationError: As Recorder and Display say, or nothing is named to resume.
        """
        if settings.record.resume and settings.record.dir is None:
            raise ConfigurationError(["--record.resume names no dataset: say which with --record DIR"])
        self._recorder = Recorder(settings, spec, trace) if settings.record.dir is not None else None
        display = Display(settings.display, spec) if settings.display else None
        self.sinks = [sink for sink in (self._recorder, display) if sink is not None]
        self.problem: str | None = None

    def start(self, stack: ExitStack) -> None:
        """Starts them, to be closed by stack, long before they are needed: their processes have much to import."""
        for sink in self.sinks:
            sink.start()
            stack.callback(self._close, sink)

    def await_ready(self, clock: Clock, check: Callable[[], None]) -> None:
        """Returns when all are ready; check is called again and again meanwhile.

        Raises:
          ConfigurationError: A file or a viewer cannot be opened.
          TimeoutError: One of them takes too long.
        """
        give_up_at = clock.now() + START_SECONDS
        while not all(sink.is_ready(0.05) for sink in self.sinks):
            check()
            if clock.now() > give_up_at:
                raise TimeoutError(f"Recording or display were not ready after {START_SECONDS:g} s")

    def _close(self, sink: Recorder | Display) -> None:
        problem = sink.close()
        if sink is self._recorder:  # a picture that failed is no reason to fail
            self.problem = problem
