"""From observations to robot-space actions, stage by stage: everything that happens on a policy's thread."""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from longarm_service import failures
from longarm_service.policy import Answer, Guidance, LoadedPolicy, Order
from longarm_wire.errors import Reason, WireError

logger = logging.getLogger(__name__)


@dataclass
class Stopwatch:
    """Durations in seconds of the stages that were passed, in order."""

    durations: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        """Books the time since the last lap on nothing: others had their turn."""
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Books the time since the last lap on stage."""
        now = time.perf_counter()
        self.durations[stage] = now - self._since
        self._since = now


def answer(
    policy: LoadedPolicy, orders: Sequence[Order], on_forward: Callable[[int], object]
) -> list[Answer | Exception]:
    """Returns what policy answers to each order, or why there is none; see ServedPolicy.answer."""
    attempts = [_Attempt(policy, order) for order in orders]
    for attempt in attempts:
        attempt.prepare()
    for alike in _alike(attempt for attempt in attempts if attempt.failure is None):
        _forward(alike, on_forward)
    return [attempt.finish() for attempt in attempts]


class _Attempt:
    """One order on its way through the stages. A stage that fails leaves failure behind, and the next ones pass."""

    def __init__(self, policy: LoadedPolicy, order: Order) -> None:
        self.failure: Exception | None = None
        self.prepared: Any = None
        self.guidance: Guidance | None = None
        self.chunk: Any = None
        self.watch = Stopwatch()
        self.policy = policy
        self._order = order

    def prepare(self) -> None:
        order = self._order
        processors = order.processors
        self.watch.start()
        try:
            if order.new_episode:
                processors.reset()
            self.prepared = processors.preprocess(order.observation)
            if order.rtc is not None:
                self.guidance = Guidance(order.rtc)
                if order.prefix is not None:
                    self.guidance = Guidance(order.rtc, order.prefix.delay_ticks, processors.anchored(order.prefix))
            self.watch.lap("preprocess")
        except Exception as error:  # noqa: BLE001 - LeRobot and plugins raise what they like
            self._fail(error)

    def forward(self) -> None:
        self.watch.start()
        try:
            self.policy.turn_to(self._order.processors)
            self.chunk = self.policy.predict(self.prepared, self.guidance)
            self.watch.lap("predict")
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def finish(self) -> Answer | Exception:
        if self.failure is not None:
            return self.failure
        processors, model_actions = self._order.processors, None
        self.watch.start()
        try:
            if self.guidance is not None:
                model_actions = processors.in_model_space(self.chunk)
            actions = processors.postprocess(self.chunk)
            self.watch.lap("postprocess")
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return self.failure or error
        return Answer(actions, model_actions, self.watch.durations)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, WireError):
            error = failures.fault(Reason.POLICY_FAILED, f"The {self.policy.spec.policy_type} policy failed", error)
        self.failure = error


def _alike(attempts: Iterable[_Attempt]) -> Iterable[list[_Attempt]]:
    """Returns attempts grouped by what can share a forward pass."""
    groups: dict[Hashable, list[_Attempt]] = {}
    for attempt in attempts:
        shared = attempt.policy.takes_batches and attempt.guidance is None
        key = (attempt.policy.shape_of(attempt.prepared),) if shared else id(attempt)
        groups.setdefault(key, []).append(attempt)
    return groups.values()


def _forward(alike: list[_Attempt], on_forward: Callable[[int], object]) -> None:
    """Predicts for all in one pass, or for each by itself if that fails: one bad observation must not harm others."""
    if len(alike) > 1:
        for attempt in alike:
            attempt.watch.start()
        try:
            chunks = alike[0].policy.predict_batch([attempt.prepared for attempt in alike])
        except Exception:  # whatever a policy raises
            logger.exception("A batch of %d failed; its observations are predicted one by one", len(alike))
        else:
            on_forward(len(alike))
            for attempt, chunk in zip(alike, chunks, strict=True):
                attempt.chunk = chunk
                attempt.watch.lap("predict")
            return
    for attempt in alike:
        attempt.forward()
        if attempt.failure is None:
            on_forward(1)
