"""Keeps loaded policies for the sessions that use them."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NoReturn

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.metrics import ServiceMetrics
from longarm_service.policy import LoadAbandonedError, PolicyChoice, PolicyLoader, Report, ServedPolicy
from longarm_service.threads import SoloThread
from longarm_wire.errors import Reason, WireError

logger = logging.getLogger(__name__)

# A robot whose link broke is back by then, and finds the load where it left it
ABANDONED_SECONDS = 30.0


@dataclass(eq=False)
class _Entry:
    load: asyncio.Task[ServedPolicy] | None = None
    use_count: int = 0
    listeners: list[Report] = field(default_factory=list)
    news: pb.Progress | None = None
    # On the clock of time.monotonic
    unused_since: float | None = None
    # Whether nobody can get it any more
    forgotten: bool = False

    def take(self) -> None:
        self.use_count += 1
        self.unused_since = None

    def leave(self) -> None:
        self.use_count -= 1
        if not self.use_count:
            self.unused_since = time.monotonic()

    @property
    def abandoned(self) -> bool:
        """Whether nobody has waited for a while. On any thread."""
        since = self.unused_since
        return since is not None and time.monotonic() - since >= ABANDONED_SECONDS

    def publish(self, progress: pb.Progress) -> None:
        if progress == self.news:
            return
        self.news = progress
        for listener in self.listeners:
            listener(progress)

    @property
    def idle(self) -> bool:
        return self.use_count == 0 and self.load is not None and self.load.done()

    @property
    def policy(self) -> ServedPolicy | None:
        """The policy, once it is loaded."""
        load = self.load
        return load.result() if load and load.done() and not load.cancelled() and not load.exception() else None


class Lease:
    """One use of a loaded policy, which keeps it in memory until released."""

    def __init__(self, policy: ServedPolicy, device: str, on_release: Callable[[], None]) -> None:
        self.policy = policy
        self.device = device
        self._on_release: Callable[[], None] | None = on_release

    def release(self) -> None:
        """Ends the use. A second release does nothing."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()


class PolicyShelf:
    """Loads each policy once, shares it, and drops the one unused for longest when there are too many.

    Each load has a thread of its own: one that hangs, or waits for the hub, holds up no other. There are no more of
    them than there may be policies, those included that are being given up. All methods are for the thread of the event
    loop.
    """

    def __init__(
        self,
        make_loader: Callable[[], PolicyLoader],
        max_count: int,
        metrics: ServiceMetrics,
        on_drop: Callable[[ServedPolicy], object] = lambda _: None,
    ) -> None:
        """Takes what makes the loader, which takes many seconds, and who is to know of each policy that is dropped."""
        self._make_loader = make_loader
        self._max_count = max_count
        self._metrics = metrics
        self._on_drop = on_drop
        self._threads: set[SoloThread] = set()
        self._slots = asyncio.Semaphore(max_count)
        # In order of last use, oldest first
        self._entries: dict[PolicyChoice, _Entry] = {}
        self._started: asyncio.Task[PolicyLoader] | None = None

    @property
    def loader(self) -> PolicyLoader | None:
        """The loader, or None while it starts."""
        task = self._started
        return task.result() if task and task.done() and not task.cancelled() and not task.exception() else None

    @property
    def policies(self) -> list[ServedPolicy]:
        """What is in memory."""
        return [entry.policy for entry in self._entries.values() if entry.policy is not None]

    @property
    def busy(self) -> bool:
        """Whether something loads."""
        return any(thread.busy for thread in self._threads)

    def start(self) -> "asyncio.Task[PolicyLoader]":
        """Begins to make the loader and returns the task that ends with it. Call once, first."""
        self._started = asyncio.create_task(self._aside(self._make_loader), name="make loader")
        return self._started

    async def borrow(self, choice: PolicyChoice, report: Report) -> Lease:
        """Returns the chosen policy, loaded by now, and tells report how far the load is.

        A caller that is cancelled leaves the load to those who still wait, and to callers that come soon.

        Args:
          choice: In the one spelling that policy.resolved gives.
          report: Takes news of the load.

        Raises:
          WireError: What PolicyLoader.load raises; TOO_MANY_SESSIONS if there is no room.
        """
        assert self._started is not None, "start first"  # noqa: S101
        if not self._started.done():
            report(pb.Progress(stage=pb.PROGRESS_STAGE_LOADING, message="The service starts up"))
        loader = await asyncio.shield(self._started)
        choice = replace(choice, device=choice.device or loader.device, dtype=choice.dtype or loader.dtype)
        self.drop_failed()
        choice = self._spelled_as_loaded(choice)
        await self._drop_if_outdated(choice, loader)
        while True:
            try:
                return await self._lent(choice, loader, report)
            except LoadAbandonedError:
                # Given up in the moment in which this caller came
                continue

    async def _lent(self, choice: PolicyChoice, loader: PolicyLoader, report: Report) -> Lease:
        entry = self._entries.pop(choice, None)
        if entry is None:
            self._make_room()
            entry = _Entry()
            entry.load = asyncio.create_task(self._load(choice, entry, loader), name=f"load {choice}")
            # Its failure is told to whoever waits; nobody may
            entry.load.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._entries[choice] = entry
        entry.take()
        if entry.news is not None and not entry.idle:
            report(entry.news)
        entry.listeners.append(report)
        assert entry.load is not None  # noqa: S101 - set above
        try:
            return Lease(await asyncio.shield(entry.load), choice.device, functools.partial(self._release, entry))
        except BaseException:
            self._release(entry)
            raise
        finally:
            entry.listeners.remove(report)

    def drop_failed(self) -> None:
        """Forgets policies that cannot be used any more, so that who asks for them gets new ones."""
        for choice, entry in list(self._entries.items()):
            if entry.policy is not None and entry.policy.failure is not None:
                logger.warning("%s is dropped. %s", choice.pretrained_name_or_path, entry.policy.failure)
                self._forget(choice)

    def close(self) -> None:
        """Ends every policy that is left."""
        if self.loader is not None:
            self.loader.close()

    async def _load(self, choice: PolicyChoice, entry: _Entry, loader: PolicyLoader) -> ServedPolicy:
        loop = asyncio.get_running_loop()

        begun: float | None = time.monotonic()

        def report(progress: pb.Progress) -> None:
            nonlocal begun
            fetching = progress.stage == pb.PROGRESS_STAGE_FETCHING
            # Afterwards it is no longer the hub's speed that decides how long it takes, and it may be of use soon
            if entry.forgotten or (fetching and entry.abandoned):
                give_up()
            if fetching:
                begun = None
            elif begun is None:
                begun = time.monotonic()
            loop.call_soon_threadsafe(entry.publish, progress)

        def give_up() -> NoReturn:
            logger.info("nobody waits for %s any more: it is not loaded", choice.pretrained_name_or_path)
            raise LoadAbandonedError(choice.pretrained_name_or_path)

        try:
            async with self._slots:
                if entry.forgotten or entry.abandoned:
                    give_up()
                logger.info("loading %s on %s", choice.pretrained_name_or_path, choice.device)
                begun = since = time.monotonic()
                try:
                    policy = await self._aside(functools.partial(loader.load, choice, report))
                finally:
                    # Without the time that it took to fetch it
                    if begun is not None:
                        self._metrics.policy_load.observe(time.monotonic() - begun)
        except BaseException:
            if self._entries.get(choice) is entry:
                del self._entries[choice]
            raise
        if entry.forgotten:
            policy.close()
            raise LoadAbandonedError(choice.pretrained_name_or_path)
        logger.info("loaded %s in %.1f s", choice.pretrained_name_or_path, time.monotonic() - since)
        self._metrics.policies_loaded.inc()
        return policy

    def _spelled_as_loaded(self, choice: PolicyChoice) -> PolicyChoice:
        """Returns the choice under which the same is in memory, where choice names its commit; or choice."""
        if choice.revision:
            for other, entry in self._entries.items():
                if (
                    replace(other, revision=choice.revision) == choice
                    and entry.policy is not None
                    and entry.policy.fingerprint.revision == choice.revision
                ):
                    return other
        return choice

    async def _drop_if_outdated(self, choice: PolicyChoice, loader: PolicyLoader) -> None:
        """Forgets a policy whose directory holds something else by now: a robot that starts wants what is there."""
        entry = self._entries.get(choice)
        if entry is None or entry.policy is None:
            return
        if not await asyncio.to_thread(loader.is_current, entry.policy):
            why = "is gone" if entry.policy.failure is not None else "changed on disk"
            logger.info("%s %s and is loaded again", choice.pretrained_name_or_path, why)
            if self._entries.get(choice) is entry:
                self._forget(choice)

    def _make_room(self) -> None:
        if len(self._entries) < self._max_count:
            return
        for choice, entry in self._entries.items():
            # A load that nobody waits for any more takes no room either
            if entry.use_count == 0:
                logger.info("dropping %s to make room", choice.pretrained_name_or_path)
                self._forget(choice)
                return
        raise WireError(
            Reason.TOO_MANY_SESSIONS,
            f"The service holds {len(self._entries)} policies (max_loaded_policies), all of them in use or preloaded.",
        )

    def _forget(self, choice: PolicyChoice) -> None:
        entry = self._entries.pop(choice)
        if entry.policy is not None:
            self._metrics.policies_loaded.dec()
        entry.forgotten = True
        self._drop_if_done_with(entry)

    def _release(self, entry: _Entry) -> None:
        entry.leave()
        self._drop_if_done_with(entry)

    def _drop_if_done_with(self, entry: _Entry) -> None:
        """Ends a policy that nobody uses and nobody can get any more."""
        if entry.forgotten and entry.use_count == 0 and entry.policy is not None:
            self._on_drop(entry.policy)
            entry.policy.close()

    async def _aside[T](self, action: Callable[[], T]) -> T:
        """Returns what action returns on a thread of its own."""
        thread = SoloThread("load")
        self._threads.add(thread)
        try:
            return await thread.run(action)
        finally:
            thread.close()
            if not thread.busy:
                self._threads.discard(thread)
