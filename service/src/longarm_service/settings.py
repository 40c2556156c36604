"""What can be set on the service, each thing declared once."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from longarm_wire.settings import ProcessSettings

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Written as JSON or with commas: a shell user should not have to quote brackets
Names = Annotated[tuple[str, ...], NoDecode]


class ServiceSettings(ProcessSettings):
    """Serves action chunks of LeRobot policies over gRPC."""

    model_config = SettingsConfigDict(env_prefix="LONGARM_SERVICE_")

    host: str = "127.0.0.1"
    """Address for gRPC. Robots come through an SSH tunnel, so that loopback is enough; there is no authentication."""
    port: Port = 8080
    """Port for gRPC. 0 takes a free one."""
    metrics_host: str = "127.0.0.1"
    """Address for /healthz, /readyz and /metrics."""
    metrics_port: Port = 9100
    """Port for /healthz, /readyz and /metrics. 0 takes a free one."""
    announce: Path | None = None
    """File to which {"port": ..., "metrics_port": ...} is written once both ports listen. Removed at the end."""

    policy_device: str = "auto"
    """Where policies run unless a session asks otherwise: "cuda", "cuda:1", "mps", "cpu", or "auto" for the best there
    is."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Floating point type to cast weights to unless a session asks otherwise. Empty leaves them as they are."""
    compile: bool = False
    """Compile policies with torch.compile: minutes more to load, less time per chunk. Real-time chunking is not
    compiled."""
    torch_threads: Annotated[int, Field(ge=0)] = 0
    """Threads of torch on the CPU. 0 leaves torch's own choice."""

    preload: Names = ()
    """Policies to load and warm up before the service is ready, and to keep: directories, or hub names, where
    name@revision is one revision. Comma-separated or a JSON list."""
    allowed_policies: Names = ()
    """Policies that robots may ask for: hub names or directories, with * and ? (both match "/" too). A hub name stands
    for its main revision; name@revision, also with * and ?, for others. Preloaded ones may be asked for as well. Empty
    allows all. Comma-separated or a JSON list."""
    trusted_policies: Names = ()
    """Policies that may run code which they name: directories, or hub names with a commit, as name@commit. That code,
    and whoever can change it, does as it likes as the service's user. Comma-separated or a JSON list."""
    max_loaded_policies: Annotated[int, Field(ge=1)] = 4
    """Most policies in memory. The one unused for longest makes room; one that a session uses or that was preloaded
    never does."""
    max_session_count: Annotated[int, Field(ge=1)] = 32
    """Most sessions at a time. Where there are as many, one that was idle for 30 s makes room for a new one."""
    session_idle_timeout: PositiveSeconds = 600.0
    """Seconds without a call after which a session is forgotten."""

    load_timeout: PositiveSeconds = 1800.0
    """Seconds that a load may go without news of it. Then it counts as hung, and is ended."""
    predict_timeout: PositiveSeconds = 60.0
    """Seconds that a forward pass may take. Then the policy counts as hung: its process is ended, and robots open new
    sessions, which load it anew."""

    inference_latency: Seconds = 0.0
    """Least seconds from an observation's arrival to its answer, to imitate a slower machine."""
    obs_queue_timeout: PositiveSeconds = 2.0
    """Seconds that an observation may wait for the policy. One that waits longer is refused, for a fresh one is
    better."""
    max_batch_size: Annotated[int, Field(ge=0)] = 0
    """Most observations, each of another session, in one forward pass. 1 predicts one by one; 0 stands for 8, and for 1
    on the CPU, where a batch takes as long as its parts. For policies that are known to keep observations apart, not
    compiled, without real-time chunking."""
    batch_window: Annotated[float, Field(ge=0, le=0.1)] = 0.003
    """Seconds that an observation waits for those of other sessions while the policy is free. Never waits where one
    session uses the policy."""
    drain_timeout: Seconds = 10.0
    """Seconds that running predictions get to end after SIGTERM or SIGINT."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity of log lines."""

    @field_validator("preload", "allowed_policies", "trusted_policies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return tuple(part.strip() for part in value.split(",") if part.strip())
