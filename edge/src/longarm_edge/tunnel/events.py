"""What the tunnel's process and its parent say to each other: one JSON object a line, both ways."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from longarm_edge.tunnel.errors import Cause


class State(StrEnum):
    """Where the tunnel stands."""

    CONNECTING = "connecting"
    """On the way to the SSH server."""
    WAITING = "waiting"
    """The link stands, the service does not answer through it."""
    UP = "up"
    """The service answers gRPC health through the tunnel."""
    DOWN = "down"
    """There is no link; another attempt follows after a pause."""
    FAILED = "failed"
    """It can never work as configured."""
    CLOSED = "closed"
    """Closed on purpose, or not opened yet."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)


class StateChanged(_Line):
    """The tunnel is in another state, or in the same one for another cause."""

    kind: Literal["state"] = "state"
    state: State
    cause: Cause | None = None
    message: str = ""
    """For a person: what happened and what to do."""


class Probed(_Line):
    """The service answered. Bytes are those of the SSH connection since the last report, encryption included."""

    kind: Literal["probed"] = "probed"
    round_trip_seconds: float
    sent_bytes: int
    received_bytes: int


class Warned(_Line):
    """Something that a person should know and that stops nothing."""

    kind: Literal["warned"] = "warned"
    message: str


class HostKeyQuestion(_Line):
    """A host key that nobody vouches for yet. The answer is one line: a JSON true or false."""

    kind: Literal["question"] = "question"
    host: str
    """As in known_hosts: host or [host]:port."""
    key_type: str
    fingerprint: str
    known_hosts_file: str


Event = Annotated[StateChanged | Probed | Warned | HostKeyQuestion, Field(discriminator="kind")]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)

# The parent's last line. One that dies cannot say it
END = '"end"'


class Order(_Line):
    """The first line to the process: all that it works with. Holds secrets."""

    settings: dict[str, Any]
    """As SshSettings.to_json gives it."""
    directory: str
    """Where the Unix sockets go, see near_end.socket_path."""
    ports: dict[int, int]
    """Descriptors of sockets that listen on a local port, and the far port that each is to lead to."""
    interactive: bool
    """Whether somebody is there to answer questions."""
    was_up: bool
    """Whether the tunnel has been up before, in another process."""
