"""What a person sees while the far side is brought up: one line a step, live on a terminal, in the log elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

logger = logging.getLogger(__name__)

# Seconds between lines about a transfer where no bar is drawn
PLAIN_INTERVAL = 5.0
LIVE_WIDTH = 60
# What pip says hundreds of times
DULL = "Requirement already satisfied"


@dataclass
class Telling:
    """One step on its way. Made by Narrator.step."""

    title: str
    bars: Progress | None = None
    bar: TaskID | None = None
    _told: float = field(default_factory=time.monotonic)

    def line(self, text: str) -> None:
        """Shows the latest that the far side says."""
        if text.startswith(DULL):
            return
        if self.bars is None or self.bar is None:
            logger.info("  %s", text)
        else:
            self.bars.update(self.bar, latest=text.strip()[:LIVE_WIDTH])

    def progress(self, done: int, total: int) -> None:
        """Shows how far a transfer is, in bytes."""
        text = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
        if self.bars is not None and self.bar is not None:
            self.bars.update(self.bar, completed=done, total=total, latest=text)
        elif time.monotonic() - self._told > PLAIN_INTERVAL:
            self._told = time.monotonic()
            logger.info("  %s", text)


class Narrator:
    """Tells of steps as they are carried out."""

    def __init__(self, console: Console) -> None:
        """Tells to console."""
        self._console = console

    @contextmanager
    def step(self, title: str) -> Iterator[Telling]:
        """Tells of one step, which ends with the context."""
        if not self._console.is_terminal:
            logger.info("%s", title)
            yield Telling(title)
            return
        began = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[latest]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self._console, transient=True) as bars:
            yield Telling(title, bars, bars.add_task(title, total=None, latest=""))
        self._console.print(
            f"[green]✓[/green] {escape(title)} [dim]{time.monotonic() - began:.0f} s[/dim]", highlight=False
        )
