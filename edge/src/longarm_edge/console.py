"""What a person sees while it runs: progress bars and one live line on a terminal, plain log lines elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_edge.link import LinkState

logger = logging.getLogger(__name__)

STAGES = {
    pb.PROGRESS_STAGE_UNSPECIFIED: "waiting for the service",
    pb.PROGRESS_STAGE_FETCHING: "fetching the policy",
    pb.PROGRESS_STAGE_LOADING: "loading the policy",
    pb.PROGRESS_STAGE_COMPILING: "compiling the policy",
    pb.PROGRESS_STAGE_WARMING_UP: "warming up",
}
STYLES = {
    LinkState.CONNECTING: "yellow",
    LinkState.STREAMING: "green",
    LinkState.DEGRADED: "yellow",
    LinkState.SLOW: "yellow",
    LinkState.STALLED: "bold red",
    LinkState.RECONNECTING: "bold red",
    LinkState.FAILED: "bold red",
}
# Where no terminal shows a live line: seconds between looks, and between lines as long as the state stays the same
PLAIN_INTERVAL = 1.0
REPEAT_INTERVAL = 60.0
LIVE_INTERVAL = 0.25

OnProgress = Callable[[pb.Progress], None]


def set_up_logging(level: str, console: Console) -> None:
    """Sends the log of this process to standard error, coloured on a terminal."""
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # Other libraries only when something is wrong: LeRobot and its friends talk a lot
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    logging.getLogger("longarm_edge").setLevel(level.upper())


def tell(console: Console, text: str) -> None:
    """Prints text as it is. Lines stay whole, for those who search a log or copy a path.

    A terminal that is gone costs the words and nothing else.
    """
    with suppress(OSError):
        console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def opening(console: Console, title: str) -> Iterator[OnProgress]:
    """Shows how opening a session comes along: a bar on a terminal, a line per stage elsewhere."""
    if not console.is_terminal:
        seen = set()

        def say(progress: pb.Progress) -> None:
            if progress.stage not in seen:
                seen.add(progress.stage)
                logger.info("%s: %s", title, _words(progress))

        yield say
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(STAGES[pb.PROGRESS_STAGE_UNSPECIFIED], total=None)

        def draw(progress: pb.Progress) -> None:
            known = progress.HasField("fraction")
            bars.update(
                bar,
                description=_words(progress),
                total=1.0 if known else None,
                completed=progress.fraction if known else 0,
            )

        yield draw


def _words(progress: pb.Progress) -> str:
    return ": ".join(part for part in (STAGES.get(progress.stage, "working"), progress.message) if part)


class StatusLine:
    """Shows one line about the run until closed: live on a terminal, in the log when the link's state changed."""

    def __init__(self, console: Console, status: Callable[[], tuple[LinkState, str]]) -> None:
        """Prepares to show status, which returns the link's state and what else to say."""
        self._console = console
        self._status = status
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        if not self._console.is_terminal:
            self._log()
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._done.wait(LIVE_INTERVAL):
                state, line = self._status()
                live.update(
                    Text.assemble((f" {state.value:<12} ", f"reverse {STYLES[state]}"), "  ", line), refresh=True
                )

    def _log(self) -> None:
        told: tuple[LinkState, float] | None = None
        while not self._done.wait(PLAIN_INTERVAL):
            state, line = self._status()
            now = time.monotonic()
            # A robot that streams for weeks need not fill a journal; metrics have every second of it
            if told is None or told[0] is not state or now - told[1] >= REPEAT_INTERVAL:
                told = (state, now)
                logger.info("%s  %s", state.value, line)
