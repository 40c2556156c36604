import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProgressStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROGRESS_STAGE_UNSPECIFIED: _ClassVar[ProgressStage]
    PROGRESS_STAGE_FETCHING: _ClassVar[ProgressStage]
    PROGRESS_STAGE_LOADING: _ClassVar[ProgressStage]
    PROGRESS_STAGE_COMPILING: _ClassVar[ProgressStage]
    PROGRESS_STAGE_WARMING_UP: _ClassVar[ProgressStage]

class ImageCodec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_CODEC_UNSPECIFIED: _ClassVar[ImageCodec]
    IMAGE_CODEC_JPEG: _ClassVar[ImageCodec]
    IMAGE_CODEC_PNG: _ClassVar[ImageCodec]
    IMAGE_CODEC_RAW: _ClassVar[ImageCodec]
PROGRESS_STAGE_UNSPECIFIED: ProgressStage
PROGRESS_STAGE_FETCHING: ProgressStage
PROGRESS_STAGE_LOADING: ProgressStage
PROGRESS_STAGE_COMPILING: ProgressStage
PROGRESS_STAGE_WARMING_UP: ProgressStage
IMAGE_CODEC_UNSPECIFIED: ImageCodec
IMAGE_CODEC_JPEG: ImageCodec
IMAGE_CODEC_PNG: ImageCodec
IMAGE_CODEC_RAW: ImageCodec

class GetServiceInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServiceInfoResponse(_message.Message):
    __slots__ = ("service_version", "lerobot_version", "torch_version", "device", "device_name", "loaded_policies", "max_request_bytes", "max_session_count", "session_count", "waiting_count")
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEROBOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    TORCH_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    LOADED_POLICIES_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    WAITING_COUNT_FIELD_NUMBER: _ClassVar[int]
    service_version: str
    lerobot_version: str
    torch_version: str
    device: str
    device_name: str
    loaded_policies: _containers.RepeatedCompositeFieldContainer[PolicyFingerprint]
    max_request_bytes: int
    max_session_count: int
    session_count: int
    waiting_count: int
    def __init__(self, service_version: _Optional[str] = ..., lerobot_version: _Optional[str] = ..., torch_version: _Optional[str] = ..., device: _Optional[str] = ..., device_name: _Optional[str] = ..., loaded_policies: _Optional[_Iterable[_Union[PolicyFingerprint, _Mapping]]] = ..., max_request_bytes: _Optional[int] = ..., max_session_count: _Optional[int] = ..., session_count: _Optional[int] = ..., waiting_count: _Optional[int] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("pretrained_name_or_path", "revision", "policy_type", "device", "dtype", "robot", "rename_map", "actions_per_chunk", "task", "rtc", "masked_cameras")
    class RenameMapEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PRETRAINED_NAME_OR_PATH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    POLICY_TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    RENAME_MAP_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_PER_CHUNK_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    RTC_FIELD_NUMBER: _ClassVar[int]
    MASKED_CAMERAS_FIELD_NUMBER: _ClassVar[int]
    pretrained_name_or_path: str
    revision: str
    policy_type: str
    device: str
    dtype: str
    robot: RobotSpec
    rename_map: _containers.ScalarMap[str, str]
    actions_per_chunk: int
    task: str
    rtc: RtcConfig
    masked_cameras: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pretrained_name_or_path: _Optional[str] = ..., revision: _Optional[str] = ..., policy_type: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., robot: _Optional[_Union[RobotSpec, _Mapping]] = ..., rename_map: _Optional[_Mapping[str, str]] = ..., actions_per_chunk: _Optional[int] = ..., task: _Optional[str] = ..., rtc: _Optional[_Union[RtcConfig, _Mapping]] = ..., masked_cameras: _Optional[_Iterable[str]] = ...) -> None: ...

class RobotSpec(_message.Message):
    __slots__ = ("robot_type", "action_names", "state_names", "cameras", "fps")
    ROBOT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    STATE_NAMES_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    robot_type: str
    action_names: _containers.RepeatedScalarFieldContainer[str]
    state_names: _containers.RepeatedScalarFieldContainer[str]
    cameras: _containers.RepeatedCompositeFieldContainer[CameraSpec]
    fps: float
    def __init__(self, robot_type: _Optional[str] = ..., action_names: _Optional[_Iterable[str]] = ..., state_names: _Optional[_Iterable[str]] = ..., cameras: _Optional[_Iterable[_Union[CameraSpec, _Mapping]]] = ..., fps: _Optional[float] = ...) -> None: ...

class CameraSpec(_message.Message):
    __slots__ = ("name", "height", "width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    height: int
    width: int
    def __init__(self, name: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class RtcConfig(_message.Message):
    __slots__ = ("execution_horizon", "max_guidance_weight", "prefix_attention_schedule")
    EXECUTION_HORIZON_FIELD_NUMBER: _ClassVar[int]
    MAX_GUIDANCE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_ATTENTION_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    execution_horizon: int
    max_guidance_weight: float
    prefix_attention_schedule: str
    def __init__(self, execution_horizon: _Optional[int] = ..., max_guidance_weight: _Optional[float] = ..., prefix_attention_schedule: _Optional[str] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("progress", "session")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    session: SessionDescription
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., session: _Optional[_Union[SessionDescription, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "fraction", "message")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    stage: ProgressStage
    fraction: float
    message: str
    def __init__(self, stage: _Optional[_Union[ProgressStage, str]] = ..., fraction: _Optional[float] = ..., message: _Optional[str] = ...) -> None: ...

class SessionDescription(_message.Message):
    __slots__ = ("session_id", "fingerprint", "action_names", "state_names", "cameras", "chunk_size", "supports_rtc", "max_request_bytes", "idle_timeout", "model_action_dim", "reply_secret", "notes", "n_action_steps", "temporal_ensemble_coeff")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    STATE_NAMES_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    SUPPORTS_RTC_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_ACTION_DIM_FIELD_NUMBER: _ClassVar[int]
    REPLY_SECRET_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    N_ACTION_STEPS_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_ENSEMBLE_COEFF_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    fingerprint: PolicyFingerprint
    action_names: _containers.RepeatedScalarFieldContainer[str]
    state_names: _containers.RepeatedScalarFieldContainer[str]
    cameras: _containers.RepeatedCompositeFieldContainer[CameraSpec]
    chunk_size: int
    supports_rtc: bool
    max_request_bytes: int
    idle_timeout: _duration_pb2.Duration
    model_action_dim: int
    reply_secret: bytes
    notes: _containers.RepeatedScalarFieldContainer[str]
    n_action_steps: int
    temporal_ensemble_coeff: float
    def __init__(self, session_id: _Optional[str] = ..., fingerprint: _Optional[_Union[PolicyFingerprint, _Mapping]] = ..., action_names: _Optional[_Iterable[str]] = ..., state_names: _Optional[_Iterable[str]] = ..., cameras: _Optional[_Iterable[_Union[CameraSpec, _Mapping]]] = ..., chunk_size: _Optional[int] = ..., supports_rtc: _Optional[bool] = ..., max_request_bytes: _Optional[int] = ..., idle_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., model_action_dim: _Optional[int] = ..., reply_secret: _Optional[bytes] = ..., notes: _Optional[_Iterable[str]] = ..., n_action_steps: _Optional[int] = ..., temporal_ensemble_coeff: _Optional[float] = ...) -> None: ...

class PolicyFingerprint(_message.Message):
    __slots__ = ("policy_type", "pretrained_name_or_path", "revision", "digest")
    POLICY_TYPE_FIELD_NUMBER: _ClassVar[int]
    PRETRAINED_NAME_OR_PATH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    policy_type: str
    pretrained_name_or_path: str
    revision: str
    digest: str
    def __init__(self, policy_type: _Optional[str] = ..., pretrained_name_or_path: _Optional[str] = ..., revision: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class PredictChunkRequest(_message.Message):
    __slots__ = ("session_id", "sequence", "episode", "tick", "state", "images", "task", "rtc_prefix")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    RTC_PREFIX_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    sequence: int
    episode: int
    tick: int
    state: bytes
    images: _containers.RepeatedCompositeFieldContainer[Image]
    task: str
    rtc_prefix: RtcPrefix
    def __init__(self, session_id: _Optional[str] = ..., sequence: _Optional[int] = ..., episode: _Optional[int] = ..., tick: _Optional[int] = ..., state: _Optional[bytes] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., task: _Optional[str] = ..., rtc_prefix: _Optional[_Union[RtcPrefix, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("camera", "codec", "height", "width", "data")
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    camera: str
    codec: ImageCodec
    height: int
    width: int
    data: bytes
    def __init__(self, camera: _Optional[str] = ..., codec: _Optional[_Union[ImageCodec, str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RtcPrefix(_message.Message):
    __slots__ = ("delay_tick_count", "step_count", "model_actions", "robot_actions")
    DELAY_TICK_COUNT_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    MODEL_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    ROBOT_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    delay_tick_count: int
    step_count: int
    model_actions: bytes
    robot_actions: bytes
    def __init__(self, delay_tick_count: _Optional[int] = ..., step_count: _Optional[int] = ..., model_actions: _Optional[bytes] = ..., robot_actions: _Optional[bytes] = ...) -> None: ...

class PredictChunkResponse(_message.Message):
    __slots__ = ("sequence", "episode", "tick", "step_count", "actions", "model_actions", "durations", "reply_secret")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    STEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    DURATIONS_FIELD_NUMBER: _ClassVar[int]
    REPLY_SECRET_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    episode: int
    tick: int
    step_count: int
    actions: bytes
    model_actions: bytes
    durations: ServerDurations
    reply_secret: bytes
    def __init__(self, sequence: _Optional[int] = ..., episode: _Optional[int] = ..., tick: _Optional[int] = ..., step_count: _Optional[int] = ..., actions: _Optional[bytes] = ..., model_actions: _Optional[bytes] = ..., durations: _Optional[_Union[ServerDurations, _Mapping]] = ..., reply_secret: _Optional[bytes] = ...) -> None: ...

class ServerDurations(_message.Message):
    __slots__ = ("queue_duration", "decode_duration", "preprocess_duration", "predict_duration", "postprocess_duration", "total_duration")
    QUEUE_DURATION_FIELD_NUMBER: _ClassVar[int]
    DECODE_DURATION_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_DURATION_FIELD_NUMBER: _ClassVar[int]
    PREDICT_DURATION_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_DURATION_FIELD_NUMBER: _ClassVar[int]
    TOTAL_DURATION_FIELD_NUMBER: _ClassVar[int]
    queue_duration: _duration_pb2.Duration
    decode_duration: _duration_pb2.Duration
    preprocess_duration: _duration_pb2.Duration
    predict_duration: _duration_pb2.Duration
    postprocess_duration: _duration_pb2.Duration
    total_duration: _duration_pb2.Duration
    def __init__(self, queue_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., preprocess_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., predict_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., postprocess_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ResetSessionRequest(_message.Message):
    __slots__ = ("session_id", "episode")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    episode: int
    def __init__(self, session_id: _Optional[str] = ..., episode: _Optional[int] = ...) -> None: ...

class ResetSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
