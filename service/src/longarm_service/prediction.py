"""From requests to robot-space actions: everything that happens on the policy's thread."""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import failures, requests
from longarm_service.policy import Guidance
from longarm_service.sessions import Session
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


@dataclass(frozen=True, eq=False)
class Job:
    """A checked request, its session, and its frames by camera, decoded and prepared."""

    request: pb.PredictChunkRequest
    session: Session
    frames: Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """A predicted chunk.

    Attributes:
      actions: Robot space, float32, shape (steps, action_dim).
      model_actions: The same in model space, float32, shape (steps, model_action_dim). None without real-time chunking.
      durations: Seconds by stage.
    """

    actions: np.ndarray
    model_actions: np.ndarray | None
    durations: dict[str, float]


def predict(jobs: Sequence[Job], on_forward: Callable[[int], object]) -> list[Prediction | Exception]:
    """Returns the chunk of each job, or why there is none.

    Jobs whose observations are alike in shape are predicted in one forward pass. What fails for one of them fails for
    no other.

    Args:
      jobs: Of different sessions, all with the same policy if there are several.
      on_forward: Called after each forward pass with the number of observations in it.

    Returns:
      Per job a prediction, or WireError: INVALID_REQUEST; POLICY_FAILED with an id that is in the log;
      POLICY_RETURNED_INVALID.
    """
    attempts = [_Attempt(job) for job in jobs]
    for attempt in attempts:
        attempt.prepare()
    for alike in _alike(attempt for attempt in attempts if attempt.failure is None):
        _forward(alike, on_forward)
    return [attempt.finish() for attempt in attempts]


class _Attempt:
    """One job on its way through the stages. A stage that fails leaves failure behind, and the next ones pass."""

    def __init__(self, job: Job) -> None:
        self.failure: Exception | None = None
        self.prepared: Any = None
        self.guidance: Guidance | None = None
        self.chunk: Any = None
        self.watch = Stopwatch()
        self.policy = job.session.lease.policy
        self._request, self._session, self._frames = job.request, job.session, job.frames

    def prepare(self) -> None:
        request, session = self._request, self._session
        self.watch.start()
        try:
            observation = requests.unpack(request, session, self._frames)
            prefix = requests.unpack_prefix(request, session)
            self.watch.lap("decode")
            if request.episode != session.episode:
                session.processors.reset()
                session.episode = request.episode
            self.prepared = session.processors.preprocess(observation)
            if session.rtc is not None:
                self.guidance = Guidance(session.rtc)
                if prefix is not None:
                    self.guidance = Guidance(session.rtc, prefix.delay_ticks, session.processors.anchored(prefix))
            self.watch.lap("preprocess")
        except Exception as error:  # noqa: BLE001 - LeRobot and plugins raise what they like
            self._fail(error)

    def forward(self) -> None:
        self.watch.start()
        try:
            self.policy.turn_to(self._session.processors)
            self.chunk = self.policy.predict(self.prepared, self.guidance)
            self.watch.lap("predict")
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def finish(self) -> Prediction | Exception:
        if self.failure is not None:
            return self.failure
        session, model_actions = self._session, None
        self.watch.start()
        try:
            if self.guidance is not None:
                model_actions = session.processors.in_model_space(self.chunk)[: session.chunk_size]
            actions = session.processors.postprocess(self.chunk)
            self.watch.lap("postprocess")
            actions = _checked(actions, session)[: session.chunk_size]
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return self.failure or error
        return Prediction(actions, model_actions, self.watch.durations)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, WireError):
            what = f"The {self.policy.spec.policy_type} policy failed"
            error = failures.fault(Reason.POLICY_FAILED, what, error, self._session.agreement.notes)
        self.failure = error


def _alike(attempts: Iterable[_Attempt]) -> Iterable[list[_Attempt]]:
    """Returns attempts grouped by what can share a forward pass."""
    groups: dict[Hashable, list[_Attempt]] = {}
    for attempt in attempts:
        shared = attempt.policy.takes_batches and attempt.guidance is None
        key = (id(attempt.policy), attempt.policy.shape_of(attempt.prepared)) if shared else id(attempt)
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


def _checked(actions: np.ndarray, session: Session) -> np.ndarray:
    names = session.robot.action_names
    if actions.ndim != 2 or actions.shape[1] != len(names) or not len(actions):
        raise WireError(
            Reason.POLICY_RETURNED_INVALID, f"Expected actions of shape (steps, {len(names)}), found {actions.shape}"
        )
    finite = np.isfinite(actions)
    if not finite.all():
        bad = [name for name, good in zip(names, finite.all(axis=0), strict=True) if not good]
        raise WireError(
            Reason.POLICY_RETURNED_INVALID,
            f"The policy returned NaN or infinity in {np.count_nonzero(~finite)} of {actions.size} values: "
            f"{', '.join(bad)}",
        )
    return actions
