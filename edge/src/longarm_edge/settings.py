"""Every setting of the edge, declared once: flag, environment variable, default and meaning."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from longarm_edge.provision.settings import FarSettings
from longarm_edge.replan import Replan
from longarm_edge.tunnel.settings import SshSettings
from longarm_wire.images import DEFAULT_JPEG_QUALITY, Codec
from longarm_wire.rtc import PrefixAttentionSchedule, RtcConfig
from longarm_wire.settings import ProcessSettings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]


class AggregateName(StrEnum):
    """How a new chunk and what is left of the old one become one plan."""

    AUTO = "auto"
    LATEST_ONLY = "latest_only"
    WEIGHTED_AVERAGE = "weighted_average"
    AVERAGE = "average"
    CONSERVATIVE = "conservative"
    FADE = "fade"
    TEMPORAL_ENSEMBLE = "temporal_ensemble"
    RTC = "rtc"


class IdleRule(StrEnum):
    """What the arm is told at a tick for which there is no action."""

    HOLD = "hold"
    REPEAT_LAST = "repeat_last"


class StopRule(StrEnum):
    """How the arm is left at the end, whatever the reason."""

    HOLD = "hold"
    REST = "rest"
    RELEASE = "release"
    DRIVER = "driver"


class SafetySettings(BaseModel):
    """Motion safety."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    max_action_age: Positive = 3.0
    """Seconds from the capture of an observation after which its actions are never executed."""
    max_step: Positive | dict[str, Positive] | None = None
    """Largest change of a command per tick, in robot units: one number, or JSON by action name. Unset: no bound."""
    ease_in_speed: Positive | None = 60.0
    """Largest speed, in robot units per second, at which a joint goes to the first action of an arm that stood: at the
    start, and after every standstill. For joints in degrees or percent; a robot that counts in radians or metres wants
    a smaller one. Unset: it goes there at once."""
    joint_limits: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Lowest and highest command by action name, as JSON: {"gripper.pos": [5, 95]}."""
    when_idle: IdleRule = IdleRule.HOLD
    """At a tick without an action: hold (joints keep their pose, nothing is sent to them) or repeat_last (for robots
    with a command watchdog). Velocities go to 0 at once in either case."""
    on_stop: StopRule = StopRule.HOLD
    """At the end, on a signal and on an error: hold (torque stays on), rest (move slowly to the start pose, then as the
    robot's own configuration says), release (torque off), or driver (whatever the robot's driver does by itself, for
    robots that have no setting for it). Velocities go to 0 first in every case. A robot that cannot be left by the rule
    is refused at the start."""
    rest_seconds: Annotated[float, Field(ge=2, allow_inf_nan=False)] = 3.0
    """How long the way back to the start pose takes with on_stop=rest; longer where max_step says so."""
    rest_tolerance: Positive = 5.0
    """How far from the start pose a joint may stand, in robot units (degrees or percent, say), for on_stop=rest
    to let go of the arm. One that is farther away, blocked say, holds."""
    velocity_actions: tuple[str, ...] | None = None
    """Names of the actions that are velocities, as JSON: ["x.vel"]. Unset: told by their names (x.vel, linear_velocity,
    mobile_base.vx, remote.lx)."""
    pose_names: dict[str, str | None] = Field(default_factory=dict)
    """The state that tells where a joint stands, where its name is not the action's, as JSON: {"elbow.goal":
    "elbow.pos"}; null where no state does: max_step then begins with the first command."""
    max_offline: Positive = 60.0
    """Seconds that a fresh chunk may be wanted and not come, for whatever reason, before the run ends as failed. Longer
    if two answers usually take longer."""
    pose_file: Path | None = None
    """Where the pose at the start is kept while the arm is in the run's hands, so that `longarm-edge leave` can apply
    on_stop to an arm whose run was killed, or could not. Unset: nowhere."""


class RtcSettings(BaseModel):
    """Real-time chunking, used with aggregate_fn_name=rtc. Names and defaults are those of LeRobot's RTCConfig."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    execution_horizon: Annotated[int, Field(ge=1)] = RtcConfig.execution_horizon
    """Actions over which a new chunk follows the old one. Should be more than a chunk takes to come. The next chunk is
    asked for when no more actions than this are left."""
    max_guidance_weight: Positive = RtcConfig.max_guidance_weight
    """Upper bound of how strongly the policy is guided."""
    prefix_attention_schedule: PrefixAttentionSchedule = RtcConfig.prefix_attention_schedule
    """How closely the new chunk follows the old one between the expected delay and the horizon: ONES, LINEAR, EXP, or
    ZEROS for not at all."""

    @property
    def config(self) -> RtcConfig:
        """The settings as they travel."""
        return RtcConfig(self.execution_horizon, self.max_guidance_weight, self.prefix_attention_schedule)


class RecordSettings(BaseModel):
    """Recording of what was seen and executed."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    dir: Path | None = None
    """Directory to write a LeRobotDataset to; --record DIR for short. Unset: no recording."""
    repo_id: str = ""
    """The dataset's name, as user/name. Empty: local/ and the directory's name."""
    resume: bool = False
    """Add episodes to the dataset that is in the directory. Without it an existing directory is refused."""
    episode_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """An episode that has so many seconds of frames is saved, and the next one begins. 0: the whole run is one."""
    video: bool = True
    """Store frames as video. false: as PNG images, without loss, at many times the size and processor time."""
    vcodec: Literal["h264", "hevc", "libsvtav1", "auto"] = "h264"
    """How video is encoded. libsvtav1 is LeRobot's default; auto takes the machine's hardware encoder if LeRobot
    finds one."""
    min_free_mb: Annotated[float, Field(ge=0)] = 500
    """Free space on the disk below which recording does not begin, or saves what it has and ends."""


class EdgeSettings(ProcessSettings):
    """Settings of longarm-edge. Precedence: flag, environment, .env file, default."""

    model_config = SettingsConfigDict(env_prefix="LONGARM_EDGE_")

    server_address: str = "127.0.0.1:8080"
    """Where the policy service answers, as host:port. Not used with ssh.host: the tunnel has an address of its own."""
    pretrained_name_or_path: str = ""
    """Policy checkpoint: a directory on the service's machine, or a name on the model hub."""
    policy_type: str = ""
    """Expected type of the policy, as a check. Empty: whatever the checkpoint says."""
    revision: str = ""
    """Revision of the policy on the hub."""
    policy_device: str = ""
    """Device to run the policy on. Empty: the service's default."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Floating point type to cast the policy to. Empty: as saved."""
    client_device: Literal["cpu"] = "cpu"
    """Where actions live on the edge. Only cpu: the motors take nothing else."""

    robot: Annotated[dict[str, Any], NoDecode, Field(default_factory=dict)]
    """LeRobot's robot configuration as JSON or YAML. LeRobot's own flags (--robot.type=so101_follower --robot.port=…)
    go on top of it."""
    verify_robot_cameras: Literal[True] = True
    """Cameras are compared with the policy before the robot moves. Always on."""
    rename_map: dict[str, str] = Field(default_factory=dict)
    """From the robot's observation keys to the policy's, as JSON: {"observation.images.front":
    "observation.images.top"}."""
    masked_cameras: tuple[str, ...] = ()
    """The policy's cameras that it is to do without, as JSON: ["observation.images.wrist"]. For policies that mask what
    is missing (smolvla, pi0, pi05, pi0_fast, xvla)."""
    task: str = ""
    """Instruction for language-conditioned policies."""

    fps: Annotated[float, Field(gt=0, le=1000)] = 30.0
    """Ticks of the control loop per second. The rate the policy was trained at."""
    actions_per_chunk: Annotated[int, Field(ge=0)] = 0
    """Most actions to take of each chunk. 0: all that the policy gives, also where its n_action_steps is less: those
    beyond are for when the next chunk is late."""
    replan: Replan = Replan.AUTO
    """When to ask for a fresh chunk: auto (a short rest after the last one came, whatever the link), threshold, or
    continuous (as soon as the last one came). Where an answer takes as long as a chunk lasts: when the last one is
    played."""
    chunk_size_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """With replan=threshold: ask when queue depth / chunk size is at most this."""
    aggregate_fn_name: AggregateName = AggregateName.AUTO
    """How a new chunk and what is left of the old one become one plan. fade: the new one begins where the old one
    would have gone on, and the difference fades out. temporal_ensemble: ACT's mean of all chunks. latest_only,
    weighted_average, average and conservative: LeRobot's. rtc: real-time chunking, for policies that support it
    (smolvla, pi0, pi05 and others). auto: temporal_ensemble for an ACT that says temporal_ensemble_coeff, else fade."""
    fade_seconds: Positive = 0.1
    """With fade: time constant of what fades out. Three quarters are gone after 2.7 of it, 95 % after 4.7."""
    temporal_ensemble_coeff: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """With temporal_ensemble: a chunk weighs exp(-coefficient x steps since the oldest). Unset: what the policy says,
    else 0.01."""
    unblended_actions: list[str] = Field(default_factory=list)
    """Names of action values that are always taken from the newest chunk as they are, as JSON: ["gripper.pos"]. For
    what is open or shut and nothing in between."""
    rtc: RtcSettings = RtcSettings()
    similarity_tolerance: Annotated[float, Field(ge=0)] = 1.0
    """An observation whose joint state is within this L2 distance of the last answered one, in robot units, and whose
    cameras did not change, is filtered. 0: filter nothing."""
    camera_tolerance: Annotated[float, Field(ge=0)] = 8.0
    """A camera changed when any cell of its 32x24 thumbnail differs by more than this, of 255."""
    image_codec: Codec = Codec.JPEG
    """How frames travel: jpeg, png or raw."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = DEFAULT_JPEG_QUALITY
    """JPEG quality, 1 to 100."""

    duration: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """Seconds to run. 0: until stopped."""
    connect_timeout: Positive = 60.0
    """Seconds to wait for the service at start."""
    request_timeout: Positive = 5.0
    """Longest deadline of one prediction, in seconds: more than the policy takes. Once it is known what one usually
    takes, the deadline is four times that, and a second at least."""
    load_timeout: Positive = 900.0
    """Deadline of loading the policy, in seconds."""
    safety: SafetySettings = SafetySettings()
    ssh: SshSettings = SshSettings()
    far: FarSettings = FarSettings()
    record: RecordSettings = RecordSettings()
    display: str = ""
    """Show the run live in Rerun: spawn opens a viewer here (--display for short), HOST:PORT takes one that is open
    (rerun's default port is 9876), FILE.rrd writes a file for it. Empty: no display."""

    metrics_host: str = "127.0.0.1"
    """Address of /metrics and /healthz."""
    metrics_port: Port = 9101
    """Port of /metrics and /healthz. 0: a free one."""
    plot: Path | None = None
    """Write a picture of queue depth, action age and tick lateness here at the end."""
    debug_visualize_queue_size: bool = False
    """LeRobot's name for plot: writes longarm-run.png."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much to log."""

    @field_validator("robot", mode="before")
    @classmethod
    def _parse_robot(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            parsed = yaml.safe_load(value)  # JSON is YAML too
        except yaml.YAMLError as error:
            raise ValueError(f"Expected JSON or YAML: {error}") from None
        if not isinstance(parsed, dict):
            raise ValueError("Expected a mapping such as {type: so101_follower, port: /dev/ttyACM0}")
        return parsed

    @field_validator("server_address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError("Expected host:port with a port between 1 and 65535")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.safety.on_stop is StopRule.REST and self.safety.rest_seconds > 60:
            raise ValueError("Expected safety.rest_seconds of at most 60 with on_stop=rest")
        return self

    @property
    def plot_path(self) -> Path | None:
        """Where to write the picture of the run, if anywhere."""
        if self.plot is None and self.debug_visualize_queue_size:
            return Path("longarm-run.png")
        return self.plot
