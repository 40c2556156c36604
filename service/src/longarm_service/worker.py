"""Runs a policy's predictions on one thread, one batch after another, and decides which comes next."""

import asyncio
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from longarm_service.line import Clock, Line
from longarm_service.metrics import ServiceMetrics
from longarm_service.threads import SoloThread
from longarm_wire.errors import Reason, WireError


@dataclass(frozen=True)
class Company:
    """With what a job may share one call.

    Attributes:
      group: Jobs of equal groups may be done together.
      most: Most jobs in one call.
      expected: How many of the group there may be at a time: to wait for more would be in vain.
    """

    group: Hashable
    most: int
    expected: int


@dataclass(frozen=True, eq=False)
class _Ticket[Q, R]:
    job: Q
    company: Company | None
    done: asyncio.Future[R]
    taken: asyncio.Future[float]


class Worker[Q, R]:
    """Owns the thread that waits for one policy. All methods are for the thread of the event loop."""

    def __init__(
        self,
        work: Callable[[Sequence[Q]], Sequence[R | Exception]],
        queue_timeout_seconds: float,
        batch_window_seconds: float,
        metrics: ServiceMetrics,
        clock: Clock = time.monotonic,
    ) -> None:
        """Starts the thread. Needs a running event loop.

        Args:
          work: Does jobs on the thread, and returns a result or a failure for each.
          queue_timeout_seconds: How long a job may wait for its turn.
          batch_window_seconds: How long a job waits for others to be done with, while the thread is free.
          metrics: Learns how long jobs waited.
          clock: Tells the time in seconds.
        """
        self._work = work
        self._queue_timeout_seconds = queue_timeout_seconds
        self._batch_window_seconds = batch_window_seconds
        self._metrics = metrics
        self._clock = clock
        self._line: Line[_Ticket[Q, R]] = Line(queue_timeout_seconds, clock)
        self._arrival = asyncio.Event()
        self._thread = SoloThread("policy")
        self._dispatcher = asyncio.create_task(self._dispatch(), name="dispatcher")

    @property
    def waiting_count(self) -> int:
        """Observations that wait for the thread."""
        return len(self._line)

    @property
    def busy(self) -> bool:
        """Whether a prediction runs."""
        return self._thread.busy

    async def run(
        self, session_id: str, job: Q, company: Company | None = None, waited: float = 0.0
    ) -> tuple[R, float]:
        """Returns the result of job, and the seconds that it waited for its turn since it came.

        A caller that is cancelled while it waits gives up its place; while work runs, its result is dropped.

        Args:
          session_id: Whose it is; a newer job of the same session supersedes one that waits.
          job: What to do.
          company: With what it may be done together. None to be done alone.
          waited: Seconds for which it has waited elsewhere, which count.

        Raises:
          WireError: SUPERSEDED or QUEUE_TIMEOUT; SESSION_UNKNOWN if the worker is closed meanwhile. Beyond that the
            failure that work returned for it.
        """
        loop = asyncio.get_running_loop()
        ticket: _Ticket[Q, R] = _Ticket(job, company, loop.create_future(), loop.create_future())
        arrived = self._clock() - waited
        older = self._line.join(session_id, ticket, waited)
        if older is not None:
            _refuse(older.item, Reason.SUPERSEDED, "A newer observation of this session took the place of this one.")
        self._arrival.set()
        # A little late rather than early, so that the line agrees that the time is over
        timer = loop.call_later(self._queue_timeout_seconds - waited + 0.001, self._expire)
        try:
            result = await ticket.done
        finally:
            timer.cancel()
            self._line.leave(session_id, ticket)
            taken = ticket.taken.result() if ticket.taken.done() else self._clock()
            self._metrics.queue_wait.observe(taken - arrived)
        return result, taken - arrived

    def close(self) -> None:
        """Refuses what waits and what runs, and ends the thread when that is done. Nothing can be run any more."""
        self._dispatcher.cancel()
        self._thread.close()
        for place in self._line.places:
            _settle(place.item.done, _closed())

    async def _dispatch(self) -> None:
        while True:
            await self._arrival.wait()
            self._expire()
            if self._line.first() is None:
                self._arrival.clear()
                continue
            await self._gather()
            tickets = self._next()
            for ticket in tickets:
                ticket.taken.set_result(self._clock())
            jobs = [ticket.job for ticket in tickets]
            # Of a worker that is closed meanwhile: everybody who waits here must hear something
            outcomes: Sequence[R | Exception] = [_closed() for _ in jobs]
            try:
                outcomes = await self._thread.run(functools.partial(self._work, jobs))
            except Exception as error:  # noqa: BLE001 - it is the callers', who wait for it
                outcomes = [error] * len(jobs)
            finally:
                for ticket, outcome in zip(tickets, outcomes, strict=True):
                    _settle(ticket.done, outcome)

    async def _gather(self) -> None:
        """Waits for those that the first in line may be done together with, as long as that may be worth it."""
        while (first := self._line.first()) is not None and first.item.company is not None:
            company = first.item.company
            left = first.seated + self._batch_window_seconds - self._clock()
            alike = sum(_together(company, place.item) for place in self._line.places)
            # Somebody who cannot come along must not wait for those who can
            if left <= 0 or alike >= min(company.most, company.expected) or alike < len(self._line):
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                self._arrival.set()
                return

    def _next(self) -> list[_Ticket[Q, R]]:
        """Takes the first in line, and those behind it who can come along."""
        first = self._line.first()
        company = first.item.company if first is not None else None
        if company is None:
            places = self._line.next_batch(1, lambda _: False)
        else:
            places = self._line.next_batch(company.most, functools.partial(_together, company))
        return [place.item for place in places]

    def _expire(self) -> None:
        for place in self._line.expired():
            _refuse(
                place.item,
                Reason.QUEUE_TIMEOUT,
                f"The observation waited for {self._queue_timeout_seconds:g} s (obs_queue_timeout) and was dropped.",
            )


class Workers[Q, R]:
    """A worker for each policy in use: a slow policy holds up no other, and each GPU has something to do.

    Between policies on one device, the device and the operating system share time out. All methods are for the thread
    of the event loop, but for the property waiting_count.
    """

    def __init__(self, make_worker: Callable[[], Worker[Q, R]]) -> None:
        self._make_worker = make_worker
        self._workers: dict[int, Worker[Q, R]] = {}

    @property
    def waiting_count(self) -> int:
        """Observations that wait for a policy."""
        return sum(worker.waiting_count for worker in tuple(self._workers.values()))

    @property
    def busy(self) -> bool:
        """Whether a prediction runs."""
        return any(worker.busy for worker in self._workers.values())

    def of(self, policy: object) -> Worker[Q, R]:
        """Returns the worker of policy, which it has until retired. Only for a policy that is in use."""
        if id(policy) not in self._workers:
            self._workers[id(policy)] = self._make_worker()
        return self._workers[id(policy)]

    def retire(self, policy: object) -> None:
        """Ends the worker of a policy that nobody uses any more, if it has one."""
        worker = self._workers.pop(id(policy), None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """Ends all of them."""
        for worker in self._workers.values():
            worker.close()


def _together[Q, R](company: Company, ticket: _Ticket[Q, R]) -> bool:
    return ticket.company is not None and ticket.company.group == company.group


def _closed() -> WireError:
    return WireError(
        Reason.SESSION_UNKNOWN, "The session was closed before its observation was answered. Open a new one."
    )


def _refuse[Q, R](ticket: _Ticket[Q, R], reason: Reason, message: str) -> None:
    _settle(ticket.done, WireError(reason, message))


def _settle[R](done: asyncio.Future[R], outcome: R | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
