"""From a request to robot-space actions: everything that happens on the policy's thread."""

import time
from dataclasses import dataclass, field

import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import failures, requests
from longarm_service.policy import Guidance
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
    """A predicted chunk.

    Attributes:
      actions: Robot space, float32, shape (steps, action_dim).
      model_actions: The same in model space, float32, shape (steps, model_action_dim). None without real-time chunking.
      durations: Seconds by stage.
    """

    actions: np.ndarray
    model_actions: np.ndarray | None
    durations: dict[str, float]


def predict(request: pb.PredictChunkRequest, session: Session) -> Prediction:
    """Returns the chunk for a checked request.

    Raises:
      WireError: INVALID_REQUEST or INVALID_IMAGE; POLICY_FAILED with an id that is in the log; POLICY_RETURNED_INVALID.
    """
    watch = Stopwatch()
    observation = requests.unpack(request, session)
    prefix = requests.unpack_prefix(request, session)
    watch.lap("decode")
    policy, processors = session.lease.policy, session.processors
    model_actions = None
    try:
        if request.episode != session.episode:
            processors.reset()
            session.episode = request.episode
        prepared = processors.preprocess(observation)
        guidance = None
        if session.rtc is not None:
            guidance = Guidance(session.rtc)
            if prefix is not None:
                guidance = Guidance(session.rtc, prefix.delay_ticks, processors.anchored(prefix))
        watch.lap("preprocess")
        chunk = policy.predict(prepared, guidance)
        watch.lap("predict")
        if guidance is not None:
            model_actions = processors.in_model_space(chunk)[: session.chunk_size]
        actions = processors.postprocess(chunk)
        watch.lap("postprocess")
    except Exception as error:
        raise failures.fault(Reason.POLICY_FAILED, f"The {policy.spec.policy_type} policy failed", error) from error
    return Prediction(_checked(actions, session)[: session.chunk_size], model_actions, watch.durations)


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
