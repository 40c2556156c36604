"""One run for a person: refused before it begins if its picture cannot be written, and told when it is over."""

import atexit
import logging
import os

from rich.console import Console

from longarm_edge import console as terminal
from longarm_edge.report import check_picture, draw, render
from longarm_edge.robot import Robot
from longarm_edge.run import Run, RunResult
from longarm_edge.schedule import MonotonicClock
from longarm_edge.settings import EdgeSettings
from longarm_edge.stop import ignore_stop_signals, unhurried
from longarm_wire import exit_codes
from longarm_wire.notify import Notifier
from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)


def run_to_exit_code(settings: EdgeSettings, robot: Robot, console: Console) -> RunResult:
    """Runs once and tells the person how it went.

    Raises:
      ConfigurationError: It can never start as configured.
    """
    if settings.plot_path is not None:
        try:
            check_picture(settings.plot_path)
        except (OSError, ValueError) as error:
            raise ConfigurationError([f"LONGARM_EDGE_PLOT (--plot): {error}"]) from error
    run = Run(settings, robot, console, MonotonicClock(), Notifier(os.environ))
    result = run()
    # Whoever is impatient now still hears how it went, and the exit code says it: the interpreter takes a while to end
    atexit.register(ignore_stop_signals)
    with unhurried():
        _tell(run, result)
    return result


def _tell(run: Run, result: RunResult) -> None:
    settings, console = run.settings, run.console
    if run.trace.ticks:
        terminal.tell(console, f"\n{render(result.summary)}\n")
    if settings.plot_path is not None and run.trace.ticks:
        try:
            draw(run.trace, settings.fps, settings.plot_path)
            terminal.tell(console, f"picture: {settings.plot_path}")
        except Exception as error:  # noqa: BLE001  # however drawing fails, the run is over and went as it went
            logger.warning("no picture: %s cannot be written: %s", settings.plot_path, error)
    (logger.info if result.exit_code == exit_codes.DONE else logger.error)("%s", result.reason)
