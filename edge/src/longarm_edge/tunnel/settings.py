"""Settings of the SSH tunnel, LONGARM_EDGE_SSH__*."""

import os
import re
import shlex
import stat
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from longarm_edge.tunnel.errors import Cause, PermanentTunnelError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
# Need not exist, as for ssh itself
DEFAULT_CONFIG = Path("~/.ssh/config")
FarPort = Annotated[int, Field(ge=1, le=65535)]


class Backend(StrEnum):
    """Who speaks SSH."""

    PARAMIKO = "paramiko"
    """paramiko and sshtunnel, in Python. Needs no ssh program."""
    OPENSSH = "openssh"
    """The system's ssh, 8.5 or newer. Hardware keys, Kerberos, ProxyCommand and whatever else only it can do."""


class HostKeyPolicy(StrEnum):
    """What to do about a host key that is not known yet. A key that changed is refused in any case."""

    STRICT = "strict"
    """Ask a person at the terminal; without one, refuse."""
    ACCEPT_NEW = "accept-new"
    """Trust it at first sight and remember it."""


class SshSettings(BaseModel):
    """The SSH tunnel to the policy service."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, validate_default=True)

    host: str = ""
    """SSH server of the service's machine: a name, an address, or a Host of the SSH configuration file. Empty: no
    tunnel."""
    port: Port = 0
    """Port of the SSH server. 0: as the SSH configuration file says, else 22."""
    user: str = ""
    """User to log in as. Empty: as the SSH configuration file says, else the local user."""
    key_file: Path | None = None
    """Private key, the only one to offer. Unset: those of the agent and of the SSH configuration file, else
    ~/.ssh/id_ed25519, id_ecdsa and id_rsa."""
    passphrase: SecretStr = SecretStr("")
    """Passphrase of the private key. Goes to no server."""
    passphrase_file: Path | None = None
    """File whose first line is the passphrase."""
    password: SecretStr = SecretStr("")
    """Password of the user. Goes to the SSH server alone, never to a jump host."""
    password_file: Path | None = None
    """File whose first line is the password."""
    agent: bool = True
    """Use the SSH agent, where one runs: its keys, and for a key_file whose passphrase is not set."""
    config_file: Path | None = DEFAULT_CONFIG
    """SSH configuration file: aliases with HostName, Port, User, IdentityFile and ProxyJump."""
    known_hosts_file: Path = Path("~/.ssh/known_hosts")
    """Where the keys of known hosts are kept. /etc/ssh/ssh_known_hosts is read as well."""
    host_key_policy: HostKeyPolicy = HostKeyPolicy.STRICT
    """What to do about a host key that is not known yet: strict (ask at the terminal, refuse without one) or accept-new
    (trust at first sight and remember). A changed key is always refused."""
    host_key_fingerprint: str = ""
    """The one host key to accept, as SHA256:…, whatever known_hosts says."""
    backend: Backend = Backend.PARAMIKO
    """Who speaks SSH: paramiko (in Python) or openssh (the system's ssh)."""
    service_port: FarPort = 8080
    """Port of the policy service on the far machine's loopback."""
    metrics_port: FarPort = 9100
    """Port of the service's metrics on the far machine's loopback."""
    local_port: Port = 0
    """Local port that leads to the service, for other programs than the edge; every user of this machine reaches it. 0:
    none."""
    local_metrics_port: Port = 0
    """Local port that leads to the service's metrics, for Prometheus; every user of this machine reaches it. 0:
    none."""
    silence_timeout: Annotated[float, Field(ge=2, allow_inf_nan=False)] = 3.0
    """Seconds without a sign of life after which a connection counts as dead and is made anew."""
    connect_timeout: Seconds = 15.0
    """Seconds that each step of connecting may take."""
    reconnect_cap: Seconds = 0.8
    """Longest pause between two attempts to connect, in seconds. Pauses double from 0.1 s up to this. Raise it to 10
    for a server that locks out who connects often, as `ufw limit` does."""

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        if "@" in value:
            raise ValueError("Expected a host alone; the user has a setting of its own, ssh.user")
        if re.fullmatch(r"([^:]+|\[.*\]):\d*", value):
            raise ValueError("Expected a host alone; the port has a setting of its own, ssh.port")
        if found := re.fullmatch(r"\[([0-9A-Fa-f:.]+(%\w+)?)\]", value):
            value = found[1]  # an IPv6 address as URLs have it
        if value.startswith("-") or any(character.isspace() or character in "/[]" for character in value):
            raise ValueError("Expected a host name, an address or an alias")
        return value

    @field_validator("user")
    @classmethod
    def _check_user(cls, value: str) -> str:
        if value.startswith("-") or any(character.isspace() for character in value):
            raise ValueError("Expected a user name")
        return value

    @field_validator("host_key_fingerprint")
    @classmethod
    def _check_fingerprint(cls, value: str) -> str:
        if value and not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", value):
            raise ValueError("Expected SHA256: and 43 characters, as ssh-keygen -lf prints it")
        return value

    @field_validator("key_file", "passphrase_file", "password_file", "config_file", "known_hosts_file")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @field_validator("config_file")
    @classmethod
    def _check_config_file(cls, value: Path | None) -> Path | None:
        if value is not None and value != DEFAULT_CONFIG.expanduser() and not value.is_file():
            raise ValueError(f"Expected a file at {value}")
        return value

    @field_validator("key_file", "passphrase_file", "password_file")
    @classmethod
    def _check_private(cls, value: Path | None) -> Path | None:
        if value is not None and (problem := why_not_private(value)):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for name in ("password", "passphrase"):
            if getattr(self, name).get_secret_value() and getattr(self, f"{name}_file"):
                raise ValueError(f"Expected ssh.{name} or ssh.{name}_file, found both")
        if self.local_port and self.local_port == self.local_metrics_port:
            raise ValueError("Expected two different ports in ssh.local_port and ssh.local_metrics_port")
        return self

    @property
    def forwards(self) -> tuple[int, int]:
        """Ports on the far loopback: the service's and its metrics'."""
        return self.service_port, self.metrics_port

    def read_password(self) -> str:
        """Returns the password, empty if there is none. Raises PermanentTunnelError if its file cannot be read."""
        return _secret(self.password, self.password_file)

    def read_passphrase(self) -> str:
        """Returns the passphrase, empty if there is none. Raises PermanentTunnelError if its file cannot be read."""
        return _secret(self.passphrase, self.passphrase_file)

    def to_json(self) -> dict[str, object]:
        """Returns the settings with their secrets in clear, for the pipe to the tunnel's process and nothing else."""
        secrets = {name: getattr(self, name).get_secret_value() for name in ("password", "passphrase")}
        return self.model_dump(mode="json") | secrets


def why_not_private(path: Path) -> str:
    """Returns what is wrong with a file that holds a secret, or nothing.

    The rule is ssh's own and one more: ssh does not mind who reads a file that belongs to somebody else, and one that
    is mounted into a container often does.
    """
    try:
        found = path.stat()
    except OSError as error:
        return f"Expected a file at {path}: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return f"Expected a file at {path}, found something else"
    mode, user = stat.S_IMODE(found.st_mode), os.getuid()
    if mode & (0o077 if found.st_uid == user else 0o007):
        return f"Expected {path} to be readable by its owner alone, found mode {mode:o}: run chmod 600 {_quoted(path)}"
    if not os.access(path, os.R_OK):
        return (
            f"Expected {path} to be readable by this process, which runs as user {user}, found mode {mode:o} and owner "
            f"{found.st_uid}: run chown {user} {_quoted(path)} (for a container, on the file that is mounted)"
        )
    return ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _secret(value: SecretStr, file: Path | None) -> str:
    if file is None:
        return value.get_secret_value()
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentTunnelError(Cause.CONFIGURATION, f"The file {file} cannot be read: {error}") from error
    return lines[0] if lines else ""
