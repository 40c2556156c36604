"""Runs predictions on one thread, one after another, and decides which comes next."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longarm_service.line import Clock, Line
from longarm_service.metrics import ServiceMetrics
from longarm_service.threads import SoloThread
from longarm_wire.errors import Reason, WireError


@dataclass(frozen=True, eq=False)
class _Ticket:
    work: Callable[[], Any]
    done: asyncio.Future[Any]
    taken: asyncio.Future[float]


class Worker:
    """Owns the thread that policies run on. All methods are for the thread of the event loop.

    Use as an async context manager; leaving it drops what waits.
    """

    def __init__(self, queue_timeout_seconds: float, metrics: ServiceMetrics, clock: Clock = time.monotonic) -> None:
        self._queue_timeout_seconds = queue_timeout_seconds
        self._metrics = metrics
        self._clock = clock
        self._line: Line[_Ticket] = Line(queue_timeout_seconds, clock)
        self._arrival = asyncio.Event()
        self._thread = SoloThread("policy")
        self._dispatcher: asyncio.Task[None] | None = None

    @property
    def waiting_count(self) -> int:
        """Observations that wait for the thread."""
        return len(self._line)

    @property
    def busy(self) -> bool:
        """Whether a prediction runs."""
        return self._thread.busy

    async def run[T](self, session_id: str, work: Callable[[], T]) -> tuple[T, float]:
        """Returns what work returns on the policy's thread, and the seconds that it waited for its turn.

        A caller that is cancelled while it waits gives up its place; while work runs, its result is dropped.

        Raises:
          WireError: SUPERSEDED or QUEUE_TIMEOUT. Beyond that whatever work raises.
        """
        loop = asyncio.get_running_loop()
        ticket = _Ticket(work, loop.create_future(), loop.create_future())
        arrived = self._clock()
        older = self._line.join(session_id, ticket)
        if older is not None:
            _refuse(older.item, Reason.SUPERSEDED, "A newer observation of this session took the place of this one.")
        self._arrival.set()
        self._metrics.waiting.set(len(self._line))
        # A little late rather than early, so that the line agrees that the time is over
        timer = loop.call_later(self._queue_timeout_seconds + 0.001, self._expire)
        try:
            result = await ticket.done
        finally:
            timer.cancel()
            self._line.leave(session_id, ticket)
            self._metrics.waiting.set(len(self._line))
            taken = ticket.taken.result() if ticket.taken.done() else self._clock()
            self._metrics.queue_wait.observe(taken - arrived)
        return result, taken - arrived

    async def __aenter__(self) -> "Worker":
        self._dispatcher = asyncio.create_task(self._dispatch(), name="dispatcher")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.wait([self._dispatcher])

    async def _dispatch(self) -> None:
        while True:
            await self._arrival.wait()
            self._expire()
            place = self._line.next()
            if place is None:
                self._arrival.clear()
                continue
            ticket = place.item
            ticket.taken.set_result(self._clock())
            self._metrics.waiting.set(len(self._line))
            try:
                result = await self._thread.run(ticket.work)
            except Exception as error:  # noqa: BLE001 - it is the caller's, who waits for it
                if not ticket.done.done():
                    ticket.done.set_exception(error)
            else:
                if not ticket.done.done():
                    ticket.done.set_result(result)

    def _expire(self) -> None:
        for place in self._line.expired():
            _refuse(
                place.item,
                Reason.QUEUE_TIMEOUT,
                f"The observation waited for {self._queue_timeout_seconds:g} s (obs_queue_timeout) and was dropped.",
            )


def _refuse(ticket: _Ticket, reason: Reason, message: str) -> None:
    if not ticket.done.done():
        ticket.done.set_exception(WireError(reason, message))
