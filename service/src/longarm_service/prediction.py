"""From a request to robot-space actions: everything that happens on the policy's thread."""

import time
from dataclasses import dataclass, field

import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import failures, requests
from longarm_service.sessions import Session
from longarm_wire.errors import Reason, WireError


@dataclass
class Stopwatch:
    """Durations in seconds of the stages that were passed, in order."""

    durations: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Books the time since the last lap on stage."""
        now = time.perf_counter()
        self.durations[stage] = now - self._since
        self._since = now


@dataclass(frozen=True)
class Prediction:
    """Robot-space actions, float32 of shape (steps, action_dim), and what each stage took in seconds."""

    actions: np.ndarray
    durations: dict[str, float]


def predict(request: pb.PredictChunkRequest, session: Session) -> Prediction:
    """Returns the chunk for a checked request.

    Raises:
      WireError: INVALID_REQUEST or INVALID_IMAGE; POLICY_FAILED with an id that is in the log; POLICY_RETURNED_INVALID.
    """
    watch = Stopwatch()
    observation = requests.unpack(request, session)
    watch.lap("decode")
    policy = session.lease.policy
    try:
        if request.episode != session.episode:
            session.processors.reset()
            session.episode = request.episode
        prepared = session.processors.preprocess(observation)
        watch.lap("preprocess")
        chunk = policy.predict(prepared)
        watch.lap("predict")
        actions = session.processors.postprocess(chunk)
        watch.lap("postprocess")
    except Exception as error:
        raise failures.fault(Reason.POLICY_FAILED, f"The {policy.spec.policy_type} policy failed", error) from error
    return Prediction(_checked(actions, session)[: session.chunk_size], watch.durations)


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
