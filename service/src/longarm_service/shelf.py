"""Keeps loaded policies for the sessions that use them."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.metrics import ServiceMetrics
from longarm_service.policy import LoadAbandonedError, LoadedPolicy, PolicyChoice, PolicyLoader, Report, is_directory
from longarm_service.threads import SoloThread
from longarm_wire.errors import Reason, WireError

logger = logging.getLogger(__name__)

# A robot whose link broke is back by then, and finds the load where it left it
ABANDONED_SECONDS = 30.0


@dataclass(eq=False)
class _Entry:
    load: asyncio.Task[LoadedPolicy] | None = None
    use_count: int = 0
    listeners: list[Report] = field(default_factory=list)
    news: pb.Progress | None = None
    # On the clock of time.monotonic
    unused_since: float | None = None

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
        self.news = progress
        for listener in self.listeners:
            listener(progress)

    @property
    def idle(self) -> bool:
        return self.use_count == 0 and self.load is not None and self.load.done()

    @property
    def policy(self) -> LoadedPolicy | None:
        """The policy, once it is loaded."""
        load = self.load
        return load.result() if load and load.done() and not load.cancelled() and not load.exception() else None


class Lease:
    """One use of a loaded policy, which keeps it in memory until released."""

    def __init__(self, policy: LoadedPolicy, entry: _Entry, device: str) -> None:
        self.policy = policy
        self.device = device
        self._entry: _Entry | None = entry

    def release(self) -> None:
        """Ends the use. A second release does nothing."""
        if self._entry is not None:
            self._entry.leave()
            self._entry = None


class PolicyShelf:
    """Loads each policy once, shares it, and drops the one unused for longest when there are too many.

    Loads run one after another on a thread of their own, beside predictions: a robot that runs is slowed a little by
    another's load, and never stopped. What has to be fetched first is fetched on another. All methods are for the
    thread of the event loop.
    """

    def __init__(self, make_loader: Callable[[], PolicyLoader], max_count: int, metrics: ServiceMetrics) -> None:
        """Takes what makes the loader. It runs on the loading thread, since importing LeRobot takes many seconds."""
        self._make_loader = make_loader
        self._max_count = max_count
        self._metrics = metrics
        self._thread = SoloThread("loader")
        self._fetcher = SoloThread("fetcher")
        # In order of last use, oldest first
        self._entries: dict[PolicyChoice, _Entry] = {}
        self._kept: set[PolicyChoice] = set()
        self._started: asyncio.Task[PolicyLoader] | None = None

    @property
    def loader(self) -> PolicyLoader | None:
        """The loader, or None while it starts."""
        task = self._started
        return task.result() if task and task.done() and not task.cancelled() and not task.exception() else None

    @property
    def policies(self) -> list[LoadedPolicy]:
        """What is in memory."""
        return [entry.policy for entry in self._entries.values() if entry.policy is not None]

    @property
    def busy(self) -> bool:
        """Whether something loads."""
        return self._thread.busy or self._fetcher.busy

    def start(self) -> "asyncio.Task[PolicyLoader]":
        """Begins to make the loader and returns the task that ends with it. Call once, first."""
        self._started = asyncio.create_task(self._thread.run(self._make_loader), name="make loader")
        return self._started

    async def borrow(self, choice: PolicyChoice, report: Report, *, keep: bool = False) -> Lease:
        """Returns the chosen policy, loaded by now, and tells report how far the load is.

        A caller that is cancelled leaves the load to those who still wait, and to callers that come soon.

        Args:
          choice: In the one spelling that policy.resolved gives.
          report: Takes news of the load.
          keep: Whether the policy never makes room for another.

        Raises:
          WireError: What PolicyLoader.load raises; TOO_MANY_SESSIONS if there is no room.
        """
        assert self._started is not None, "start first"  # noqa: S101
        if not self._started.done():
            report(pb.Progress(stage=pb.PROGRESS_STAGE_LOADING, message="The service starts up"))
        loader = await asyncio.shield(self._started)
        choice = replace(choice, device=choice.device or loader.device, dtype=choice.dtype or loader.dtype)
        choice = self._spelled_as_loaded(choice)
        if keep:
            self._kept.add(choice)
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
            return Lease(await asyncio.shield(entry.load), entry, choice.device)
        except BaseException:
            entry.leave()
            raise
        finally:
            entry.listeners.remove(report)

    async def _load(self, choice: PolicyChoice, entry: _Entry, loader: PolicyLoader) -> LoadedPolicy:
        loop = asyncio.get_running_loop()

        def report(progress: pb.Progress) -> None:
            # Afterwards it is no longer the hub's speed that decides how long it takes, and it may be of use soon
            if progress.stage == pb.PROGRESS_STAGE_FETCHING:
                give_up_if_abandoned()
            loop.call_soon_threadsafe(entry.publish, progress)

        def give_up_if_abandoned() -> None:
            if entry.abandoned:
                logger.info("nobody waits for %s any more: it is not loaded", choice.pretrained_name_or_path)
                raise LoadAbandonedError(choice.pretrained_name_or_path)

        def fetch() -> PolicyChoice:
            give_up_if_abandoned()
            return loader.fetch(choice, report)

        def load() -> LoadedPolicy:
            give_up_if_abandoned()
            logger.info("loading %s on %s", choice.pretrained_name_or_path, choice.device)
            begun = time.monotonic()
            try:
                loader.release_memory()
                policy = loader.load(exact, report)
            finally:
                self._metrics.policy_load.observe(time.monotonic() - begun)
            logger.info("loaded %s in %.1f s", choice.pretrained_name_or_path, time.monotonic() - begun)
            return policy

        exact = choice
        try:
            if not is_directory(choice.pretrained_name_or_path):
                exact = await self._fetcher.run(fetch)
            policy = await self._thread.run(load)
        except BaseException:
            if self._entries.get(choice) is entry:
                del self._entries[choice]
            raise
        if self._entries.get(choice) is entry:
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
            logger.info("%s changed on disk and is loaded again", choice.pretrained_name_or_path)
            if self._entries.get(choice) is entry:
                self._forget(choice)

    def _make_room(self) -> None:
        if len(self._entries) < self._max_count:
            return
        for choice, entry in self._entries.items():
            # A load that nobody waits for any more takes no room either
            if entry.use_count == 0 and choice not in self._kept:
                logger.info("dropping %s to make room", choice.pretrained_name_or_path)
                self._forget(choice)
                return
        raise WireError(
            Reason.TOO_MANY_SESSIONS,
            f"The service holds {len(self._entries)} policies (max_loaded_policies), and sessions use all of them or "
            "they were preloaded.",
        )

    def _forget(self, choice: PolicyChoice) -> None:
        entry = self._entries.pop(choice)
        if entry.policy is not None:
            self._metrics.policies_loaded.dec()
        entry.unused_since = -math.inf
