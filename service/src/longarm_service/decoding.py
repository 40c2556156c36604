"""Decodes frames on threads of their own, before their request joins the line for the policy."""

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from longarm_wire.errors import Reason, WireError

# There is one more than processors, up to so many
MOST_THREADS = 8

type Work = Callable[[], Any]


@dataclass(eq=False)
class _Order:
    """The frames of one request."""

    work: Mapping[str, Work]
    done: asyncio.Future[dict[str, Any]]


class Decoders:
    """Decodes the frames of one request of a session at a time, so that sessions take turns at the threads.

    Of the requests that a session sends meanwhile only the newest is ever decoded. Frames of one request are decoded
    side by side on the session's share of the threads, of which one is free for whoever comes next. All methods are for
    the thread of the event loop.
    """

    def __init__(self, timeout_seconds: float) -> None:
        """Takes the seconds after which frames are no longer waited for."""
        self._timeout_seconds = timeout_seconds
        self._thread_count = min(MOST_THREADS, (os.cpu_count() or 1) + 1)
        self._threads = ThreadPoolExecutor(self._thread_count, thread_name_prefix="decode")
        # Of each session whose frames are being decoded: the order that comes after
        self._next: dict[str, _Order | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, session_id: str, work: Mapping[str, Work]) -> dict[str, Any]:
        """Returns what each of work returned, by its name.

        A caller that is cancelled gives up its place. What is being decoded goes on, and nothing else of its session is
        decoded before it is done.

        Raises:
          WireError: SUPERSEDED by a newer call of the session, or QUEUE_TIMEOUT.
          Exception: What one of work raised.
        """
        loop = asyncio.get_running_loop()
        order = _Order(work, loop.create_future())
        if session_id not in self._next:
            self._next[session_id] = None
            self._begin(session_id, order)
        else:
            older = self._next[session_id]
            self._next[session_id] = order
            if older is not None:
                _refuse(older, Reason.SUPERSEDED, "A newer observation of this session took the place of this one.")
        timer = loop.call_later(self._timeout_seconds, self._give_up, order)
        try:
            return await order.done
        finally:
            timer.cancel()
            if self._next.get(session_id) is order:
                self._next[session_id] = None

    def close(self) -> None:
        """Ends the threads. No call may be running any more."""
        self._threads.shutdown(cancel_futures=True)

    def _begin(self, session_id: str, order: _Order) -> None:
        task = asyncio.create_task(self._work_off(session_id, order), name="decode")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_off(self, session_id: str, order: _Order | None) -> None:
        while order is not None:
            await self._decode(order)
            order, self._next[session_id] = self._next[session_id], None
        del self._next[session_id]

    async def _decode(self, order: _Order) -> None:
        loop = asyncio.get_running_loop()
        results: dict[str, Any] = {}
        running: dict[asyncio.Future[Any], str] = {}
        waiting = list(order.work.items())
        # Those that began are waited for in any case: their threads are busy until then
        while running or (waiting and not order.done.done()):
            share = max(1, (self._thread_count - 1) // len(self._next))
            while waiting and len(running) < share and not order.done.done():
                name, work = waiting.pop(0)
                running[loop.run_in_executor(self._threads, work)] = name
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for job in done:
                if (error := job.exception()) is None:
                    results[running.pop(job)] = job.result()
                    continue
                del running[job]
                if not order.done.done():
                    order.done.set_exception(error)
        if not order.done.done():
            order.done.set_result(results)

    def _give_up(self, order: _Order) -> None:
        message = f"The observation was not decoded within {self._timeout_seconds:g} s (obs_queue_timeout)."
        _refuse(order, Reason.QUEUE_TIMEOUT, message)


def _refuse(order: _Order, reason: Reason, message: str) -> None:
    if not order.done.done():
        order.done.set_exception(WireError(reason, message))
