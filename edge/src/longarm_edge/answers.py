"""What the service answers, and the edge's own look at it before it is believed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from google.protobuf.duration_pb2 import Duration

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire import images, tensors
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcConfig
from longarm_wire.specs import CameraSpec, RobotSpec

SERVER_STAGES = ("queue", "decode", "preprocess", "predict", "postprocess")


@dataclass(frozen=True)
class Session:
    """An open session.

    Attributes:
      session_id: Names it.
      fingerprint: The policy that answers.
      action_dim: Values of one action.
      state_names: What the state of a request holds.
      cameras: What to send, in the sizes to send.
      chunk_size: Actions per chunk.
      model_action_dim: Values of one model-space action, where the session uses real-time chunking; else 0.
      reply_secret: What every reply of the session carries.
      notes: What the service says that a person should know, each with what to do about it.
      n_action_steps: Actions that LeRobot itself executes of a chunk before it asks anew; 0 if unknown.
      temporal_ensemble_coeff: What the policy's configuration says of it; None if nothing.
    """

    session_id: str
    fingerprint: pb.PolicyFingerprint
    action_dim: int
    state_names: tuple[str, ...]
    cameras: tuple[CameraSpec, ...]
    chunk_size: int
    model_action_dim: int = 0
    reply_secret: bytes = field(default=b"", repr=False)
    notes: tuple[str, ...] = ()
    n_action_steps: int = 0
    temporal_ensemble_coeff: float | None = None


@dataclass(frozen=True)
class Reply:
    """One answered observation.

    Attributes:
      sequence: Of the request.
      episode: Of the request.
      tick: Of the request: the step of the first action.
      actions: float32, shape (steps, action_dim), robot units; not yet checked.
      model_actions: As the policy made them, float32, shape (steps, model_action_dim); not yet checked. None without
        real-time chunking.
      server_seconds: The service's own durations by stage.
      server_total_seconds: From arrival to reply on the service.
      sent_bytes: Size of the request.
      received_bytes: Size of the reply.
    """

    sequence: int
    episode: int
    tick: int
    actions: np.ndarray
    model_actions: np.ndarray | None
    server_seconds: Mapping[str, float]
    server_total_seconds: float
    sent_bytes: int
    received_bytes: int


def checked_session(description: pb.SessionDescription, robot: RobotSpec, rtc: RtcConfig | None) -> Session:
    """Returns description as a Session, after the edge's own look: names map to motors by position.

    Raises:
      WireError: It is not what was asked for, and why.
    """
    if tuple(description.action_names) != robot.action_names:
        raise WireError(
            Reason.SPEC_MISMATCH,
            f"Expected the action names {list(robot.action_names)} but the service agreed on "
            f"{list(description.action_names)}",
        )
    if description.state_names and tuple(description.state_names) != robot.state_names:
        raise WireError(
            Reason.SPEC_MISMATCH,
            f"Expected the state names {list(robot.state_names)} but the service agreed on "
            f"{list(description.state_names)}",
        )
    unknown = {camera.name for camera in description.cameras} - {camera.name for camera in robot.cameras}
    if unknown or description.chunk_size < 1:
        raise WireError(
            Reason.SPEC_MISMATCH,
            f"Expected cameras of the robot and a positive chunk size but the service asks for "
            f"{sorted(unknown)} and chunks of {description.chunk_size}",
        )
    if misfits := [f"{c.name} {c.width}x{c.height}" for c in description.cameras if not images.fits(c.height, c.width)]:
        raise WireError(Reason.SPEC_MISMATCH, f"The service asks for frames that cannot be sent: {', '.join(misfits)}")
    coefficient = description.temporal_ensemble_coeff if description.HasField("temporal_ensemble_coeff") else None
    if coefficient is not None and not math.isfinite(coefficient):
        raise WireError(Reason.SPEC_MISMATCH, f"Expected a finite temporal_ensemble_coeff, found {coefficient}")
    if rtc is not None and (not description.supports_rtc or description.model_action_dim < 1):
        raise WireError(
            Reason.RTC_UNSUPPORTED,
            "The service opened the session without real-time chunking. Set aggregate_fn_name=latest_only.",
        )
    return Session(
        session_id=description.session_id,
        fingerprint=description.fingerprint,
        action_dim=len(robot.action_names),
        state_names=tuple(description.state_names),
        cameras=tuple(CameraSpec(c.name, c.height, c.width) for c in description.cameras),
        chunk_size=description.chunk_size,
        model_action_dim=description.model_action_dim if rtc is not None else 0,
        reply_secret=description.reply_secret,
        notes=tuple(description.notes),
        n_action_steps=description.n_action_steps,
        temporal_ensemble_coeff=coefficient,
    )


def checked_reply(request: pb.PredictChunkRequest, response: pb.PredictChunkResponse, session: Session) -> Reply:
    """Returns response as a Reply. Its actions are of the right shape, and still to be checked for what they say.

    Raises:
      WireError: It is of another shape than the session has.
    """
    model_actions = None
    durations = response.durations
    try:
        actions = tensors.unpack(response.actions, (response.step_count, session.action_dim))
        if session.model_action_dim:
            model_actions = tensors.unpack(response.model_actions, (response.step_count, session.model_action_dim))
        server_seconds = {stage: _seconds(getattr(durations, f"{stage}_duration")) for stage in SERVER_STAGES}
        server_total_seconds = _seconds(durations.total_duration)
    except (tensors.TensorError, OverflowError) as error:
        raise WireError(Reason.POLICY_RETURNED_INVALID, str(error)) from error
    return Reply(
        sequence=response.sequence,
        episode=response.episode,
        tick=response.tick,
        actions=actions,
        model_actions=model_actions,
        server_seconds=server_seconds,
        server_total_seconds=server_total_seconds,
        sent_bytes=request.ByteSize(),
        received_bytes=response.ByteSize(),
    )


def _seconds(duration: Duration) -> float:
    """Returns a duration in seconds. Raises OverflowError if it is none."""
    return duration.ToTimedelta().total_seconds()
