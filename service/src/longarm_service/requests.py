"""Checks what robots send before it gets near a policy, and unpacks it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import failures
from longarm_service.policy import Observation
from longarm_service.sessions import Session
from longarm_wire import images, tensors
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcPrefix
from longarm_wire.specs import MAX_CAMERAS, MAX_NAME_CHARACTERS, RobotSpec, check_names

CODECS: Mapping[int, images.Codec] = {
    pb.IMAGE_CODEC_JPEG: images.Codec.JPEG,
    pb.IMAGE_CODEC_PNG: images.Codec.PNG,
    pb.IMAGE_CODEC_RAW: images.Codec.RAW,
}
# Most characters of each. A task goes through a tokenizer on the policy's thread
TEXTS: Mapping[str, int] = {
    "pretrained_name_or_path": 4096,
    "revision": 256,
    "policy_type": 256,
    "device": 256,
    "dtype": 256,
    "task": 4096,
}


def check_opening(request: pb.OpenSessionRequest) -> RobotSpec:
    """Returns the robot that request states, after a look at everything else in it that needs no policy.

    Raises:
      WireError: INVALID_REQUEST.
    """
    if request.actions_per_chunk < 0:
        raise _invalid(f"Expected actions_per_chunk of at least 0, found {request.actions_per_chunk}")
    if not request.pretrained_name_or_path:
        raise _invalid("Expected pretrained_name_or_path, found none")
    for name, most in TEXTS.items():
        if (found := len(getattr(request, name))) > most:
            raise _invalid(f"Expected {name} of at most {most} characters, found {found}")
    if len(request.rename_map) > MAX_CAMERAS:
        raise _invalid(f"Expected a rename_map of at most {MAX_CAMERAS} entries, found {len(request.rename_map)}")
    if len(request.masked_cameras) > MAX_CAMERAS:
        raise _invalid(f"Expected at most {MAX_CAMERAS} masked_cameras, found {len(request.masked_cameras)}")
    check_names("entries of rename_map", [*request.rename_map, *request.rename_map.values()])
    check_names("names in masked_cameras", request.masked_cameras)
    return RobotSpec.from_proto(request.robot)


def check(request: pb.PredictChunkRequest, session: Session) -> None:
    """Checks everything about request that costs nothing, before it waits for its turn.

    Raises:
      WireError: INVALID_REQUEST, INVALID_IMAGE or RTC_UNSUPPORTED; the message says expected and found.
    """
    size = request.ByteSize()
    if size > session.max_request_bytes:
        raise _invalid(f"Expected a request of at most {session.max_request_bytes} bytes, found {size}")
    for name, value, least in (
        ("sequence", request.sequence, 1),
        ("episode", request.episode, 0),
        ("tick", request.tick, 0),
    ):
        if value < least:
            raise _invalid(f"Expected {name} of at least {least}, found {value}")
    if request.HasField("rtc_prefix") and session.rtc is None:
        raise WireError(
            Reason.RTC_UNSUPPORTED,
            "This session was opened without real-time chunking: open it with rtc, or send no rtc_prefix.",
        )
    if len(request.task) > TEXTS["task"]:
        raise _invalid(f"Expected a task of at most {TEXTS['task']} characters, found {len(request.task)}")
    if len(request.images) > MAX_CAMERAS:
        raise _invalid(f"Expected at most {MAX_CAMERAS} images, found {len(request.images)}")
    found = [image.camera[:MAX_NAME_CHARACTERS] for image in request.images]
    expected = [camera.name for camera in session.agreement.cameras]
    if sorted(found) != sorted(expected):
        raise _invalid(f"Expected one image of each camera {expected}, found {found}")
    for camera in session.agreement.cameras:
        image = next(image for image in request.images if image.camera == camera.name)
        if image.codec not in CODECS:
            raise _invalid(f"Camera {camera.name!r}: expected codec JPEG, PNG or RAW, found {image.codec}")
        if (image.height, image.width) != (camera.height, camera.width):
            raise WireError(
                Reason.INVALID_IMAGE,
                f"Camera {camera.name!r}: expected {camera.width}x{camera.height} pixels (width x height) as the "
                f"session agreed, found {image.width}x{image.height}",
            )


def decoding(request: pb.PredictChunkRequest, session: Session) -> dict[str, Callable[[], Any]]:
    """Returns per camera what decodes and prepares its frame of a checked request, on any thread.

    It raises WireError: INVALID_IMAGE, or POLICY_FAILED with an id that is in the log.
    """
    return {image.camera: functools.partial(_decode, image, session) for image in request.images}


def _decode(image: pb.Image, session: Session) -> Any:
    try:
        frame = images.decode(image.data, CODECS[image.codec], image.height, image.width)
    except images.ImageError as error:
        raise WireError(Reason.INVALID_IMAGE, f"Camera {image.camera!r}: {error}") from error
    try:
        return session.processors.prepare_frame(session.agreement.policy_keys[image.camera], frame)
    except Exception as error:  # noqa: BLE001 - LeRobot and plugins raise what they like
        what = f"The {session.lease.policy.spec.policy_type} policy failed"
        raise failures.fault(Reason.POLICY_FAILED, what, error) from None


def unpack(request: pb.PredictChunkRequest, session: Session, frames: Mapping[str, Any]) -> Observation:
    """Returns the observation in the policy's names. Takes a checked request, and its frames by camera.

    Raises:
      WireError: INVALID_REQUEST for the state.
    """
    names = session.agreement.state_names
    try:
        state = tensors.unpack(request.state, (len(names),))
    except tensors.TensorError as error:
        raise _invalid(f"State of {len(names)} values ({', '.join(names)}): {error}") from error
    if not np.isfinite(state).all():
        bad = [name for name, value in zip(names, state, strict=True) if not np.isfinite(value)]
        raise _invalid(f"Expected a finite state, found NaN or infinity in {', '.join(bad)}")
    by_key = {session.agreement.policy_keys[camera]: frame for camera, frame in frames.items()}
    task = request.task if request.HasField("task") else session.task
    return Observation(state=state, images=by_key, task=task, robot_type=session.robot.robot_type)


def unpack_prefix(request: pb.PredictChunkRequest, session: Session) -> RtcPrefix | None:
    """Returns the unexecuted actions of a checked request, if it carries any.

    Raises:
      WireError: INVALID_REQUEST.
    """
    if not request.HasField("rtc_prefix"):
        return None
    spec = session.lease.policy.spec
    prefix = RtcPrefix.from_proto(
        request.rtc_prefix,
        model_action_dim=spec.model_action_dim,
        action_dim=len(session.robot.action_names),
        max_steps=spec.chunk_size,
    )
    return prefix if len(prefix.model_actions) else None


def _invalid(message: str) -> WireError:
    return WireError(Reason.INVALID_REQUEST, message)
