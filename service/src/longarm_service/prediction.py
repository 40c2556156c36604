"""From requests to robot-space actions: what a policy is asked, and what may be answered of what it says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import failures, requests
from longarm_service.policy import Answer, Order
from longarm_service.sessions import Session
from longarm_service.stages import Stopwatch
from longarm_wire.errors import Reason, WireError


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

    What fails for one of them fails for no other.

    Args:
      jobs: Of different sessions, all with the same policy.
      on_forward: Called after each forward pass with the number of observations in it.

    Returns:
      Per job a prediction, or WireError: INVALID_REQUEST; POLICY_FAILED with an id that is in the log;
      POLICY_RETURNED_INVALID.
    """
    orders = [_attempt(_order, job) for job in jobs]
    good = [timed for timed in orders if not isinstance(timed, Exception)]
    answers = iter(_answers(jobs[0].session, [order for order, _ in good], on_forward) if good else ())
    outcomes = [
        timed if isinstance(timed, Exception) else _attempt(_prediction, job, next(answers), timed[1])
        for job, timed in zip(jobs, orders, strict=True)
    ]
    return [_hinted(outcome, job.session) for job, outcome in zip(jobs, outcomes, strict=True)]


def _answers(
    session: Session, orders: Sequence[Order], on_forward: Callable[[int], object]
) -> Sequence[Answer | Exception]:
    try:
        return session.lease.policy.answer(orders, on_forward)
    except WireError as error:
        return [error] * len(orders)


def _order(job: Job) -> tuple[Order, dict[str, float]]:
    """Returns what the policy is asked, and the seconds that it took to find out."""
    request, session, watch = job.request, job.session, Stopwatch()
    order = Order(
        processors=session.processors,
        observation=requests.unpack(request, session, job.frames),
        new_episode=request.episode != session.episode,
        rtc=session.rtc,
        prefix=requests.unpack_prefix(request, session),
    )
    session.episode = request.episode
    watch.lap("decode")
    return order, watch.durations


def _prediction(job: Job, answer: Answer | Exception, durations: dict[str, float]) -> Prediction:
    if isinstance(answer, Exception):
        raise answer
    most = job.session.chunk_size
    return Prediction(
        _checked(answer.actions, job.session)[:most],
        None if answer.model_actions is None else answer.model_actions[:most],
        durations | answer.durations,
    )


def _attempt[R](action: Callable[..., R], job: Job, *arguments: Any) -> R | Exception:
    try:
        return action(job, *arguments)
    except WireError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a plugin answers what it likes
        kind = job.session.lease.policy.spec.policy_type
        return failures.fault(Reason.POLICY_FAILED, f"The {kind} policy failed", error)


def _hinted[R](outcome: R | Exception, session: Session) -> R | Exception:
    """Adds to the failure of a policy what may well be its reason: how its robot differs from what it was made for."""
    notes = session.agreement.notes
    if not notes or not isinstance(outcome, WireError) or outcome.reason is not Reason.POLICY_FAILED:
        return outcome
    return WireError(outcome.reason, " ".join([outcome.message, *notes]), **outcome.metadata)


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
