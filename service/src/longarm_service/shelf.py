"""Keeps loaded policies for the sessions that use them."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.metrics import ServiceMetrics
from longarm_service.policy import LoadedPolicy, PolicyChoice, PolicyLoader, Report
from longarm_service.threads import SoloThread
from longarm_wire.errors import Reason, WireError

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Entry:
    load: asyncio.Task[LoadedPolicy] | None = None
    use_count: int = 0
    listeners: list[Report] = field(default_factory=list)
    news: pb.Progress | None = None

    def publish(self, progress: pb.Progress) -> None:
        self.news = progress
        for listener in self.listeners:
            listener(progress)

    @property
    def idle(self) -> bool:
        return self.use_count == 0 and self.load is not None and self.load.done()


class Lease:
    """One use of a loaded policy, which keeps it in memory until released."""

    def __init__(self, policy: LoadedPolicy, entry: _Entry, device: str) -> None:
        self.policy = policy
        self.device = device
        self._entry: _Entry | None = entry

    def release(self) -> None:
        """Ends the use. A second release does nothing."""
        if self._entry is not None:
            self._entry.use_count -= 1
            self._entry = None


class PolicyShelf:
    """Loads each policy once, shares it, and drops the one unused for longest when there are too many.

    Loads run one after another on a thread of their own, beside predictions: a robot that runs is slowed a little by
    another's load, and never stopped. All methods are for the thread of the event loop.
    """

    def __init__(self, make_loader: Callable[[], PolicyLoader], max_count: int, metrics: ServiceMetrics) -> None:
        """Takes what makes the loader. It runs on the loading thread, since importing LeRobot takes many seconds."""
        self._make_loader = make_loader
        self._max_count = max_count
        self._metrics = metrics
        self._thread = SoloThread("loader")
        # In order of last use, oldest first
        self._entries: dict[PolicyChoice, _Entry] = {}
        self._started: asyncio.Task[PolicyLoader] | None = None

    @property
    def loader(self) -> PolicyLoader | None:
        """The loader, or None while it starts."""
        task = self._started
        return task.result() if task and task.done() and not task.cancelled() and not task.exception() else None

    @property
    def policies(self) -> list[LoadedPolicy]:
        """What is in memory."""
        loads = [entry.load for entry in self._entries.values()]
        return [load.result() for load in loads if load and load.done() and not load.exception()]

    @property
    def busy(self) -> bool:
        """Whether something loads."""
        return self._thread.busy

    def start(self) -> "asyncio.Task[PolicyLoader]":
        """Begins to make the loader and returns the task that ends with it. Call once, first."""
        self._started = asyncio.create_task(self._thread.run(self._make_loader), name="make loader")
        return self._started

    async def borrow(self, choice: PolicyChoice, report: Report) -> Lease:
        """Returns the chosen policy, loaded by now, and tells report how far the load is.

        A caller that is cancelled leaves the load to those who still wait, and to later callers.

        Raises:
          WireError: What PolicyLoader.load raises; TOO_MANY_SESSIONS if there is no room.
        """
        assert self._started is not None, "start first"  # noqa: S101
        if not self._started.done():
            report(pb.Progress(stage=pb.PROGRESS_STAGE_LOADING, message="The service starts up"))
        loader = await asyncio.shield(self._started)
        choice = replace(choice, device=choice.device or loader.device, dtype=choice.dtype or loader.dtype)
        await self._drop_if_outdated(choice, loader)
        entry = self._entries.pop(choice, None)
        if entry is None:
            self._make_room()
            entry = _Entry()
            entry.load = asyncio.create_task(self._load(choice, entry, loader), name=f"load {choice}")
            # Its failure is told to whoever waits; nobody may
            entry.load.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._entries[choice] = entry
        entry.use_count += 1
        if entry.news is not None and not entry.idle:
            report(entry.news)
        entry.listeners.append(report)
        assert entry.load is not None  # noqa: S101 - set above
        try:
            return Lease(await asyncio.shield(entry.load), entry, choice.device)
        except BaseException:
            entry.use_count -= 1
            raise
        finally:
            entry.listeners.remove(report)

    async def _load(self, choice: PolicyChoice, entry: _Entry, loader: PolicyLoader) -> LoadedPolicy:
        loop = asyncio.get_running_loop()

        def report(progress: pb.Progress) -> None:
            loop.call_soon_threadsafe(entry.publish, progress)

        def load() -> LoadedPolicy:
            loader.release_memory()
            return loader.load(choice, report)

        logger.info("loading %s on %s", choice.pretrained_name_or_path, choice.device)
        begun = time.monotonic()
        try:
            policy = await self._thread.run(load)
        except BaseException:
            if self._entries.get(choice) is entry:
                del self._entries[choice]
            raise
        finally:
            self._metrics.policy_load.observe(time.monotonic() - begun)
        logger.info("loaded %s in %.1f s", choice.pretrained_name_or_path, time.monotonic() - begun)
        self._metrics.policies_loaded.inc()
        return policy

    async def _drop_if_outdated(self, choice: PolicyChoice, loader: PolicyLoader) -> None:
        """Forgets a policy whose directory holds something else by now: a robot that starts wants what is there."""
        entry = self._entries.get(choice)
        if entry is None or entry.load is None or not entry.load.done() or entry.load.exception():
            return
        if not await asyncio.to_thread(loader.is_current, entry.load.result()):
            logger.info("%s changed on disk and is loaded again", choice.pretrained_name_or_path)
            if self._entries.get(choice) is entry:
                self._forget(choice)

    def _make_room(self) -> None:
        if len(self._entries) < self._max_count:
            return
        for choice, entry in self._entries.items():
            if entry.idle:
                logger.info("dropping %s to make room", choice.pretrained_name_or_path)
                self._forget(choice)
                return
        raise WireError(
            Reason.TOO_MANY_SESSIONS,
            f"The service holds {len(self._entries)} policies (max_loaded_policies) and sessions use all of them.",
        )

    def _forget(self, choice: PolicyChoice) -> None:
        del self._entries[choice]
        self._metrics.policies_loaded.dec()
