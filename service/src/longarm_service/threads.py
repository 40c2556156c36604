"""A thread that does one thing after another for the event loop."""

import asyncio
import queue
import threading
from collections.abc import Callable


class SoloThread:
    """Runs callables one by one on one thread of its own.

    A ThreadPoolExecutor of one would do, but the interpreter waits for its thread at exit, and a forward pass or the
    load of a model cannot be interrupted. This one is a daemon.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something runs or waits. For the thread of the event loop."""
        return self._pending > 0

    async def run[T](self, action: Callable[[], T]) -> T:
        """Returns what action returns on the thread, or raises what it raises.

        A cancelled caller leaves action running and its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._pending += 1

        def finish(result: T | None, error: BaseException | None) -> None:
            self._pending -= 1
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # None only beside an error

        def job() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = action()
            except BaseException as caught:  # noqa: BLE001 - whatever it is, the caller must learn of it
                error = caught
            # The loop is closed when the process ends without waiting for us
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, result, error)

        self._jobs.put(job)
        return await future

    def close(self) -> None:
        """Ends the thread when what was asked for is done. Nothing can be run any more."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
