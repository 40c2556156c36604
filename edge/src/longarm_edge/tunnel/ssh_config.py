"""Hosts as an SSH configuration file describes them, for the backend that is not ssh itself."""

import getpass
import glob
import re
from dataclasses import dataclass, field
from pathlib import Path

import paramiko  # type: ignore[import-untyped]

from longarm_edge.tunnel.errors import Cause, PermanentTunnelError
from longarm_edge.tunnel.host_keys import SSH_PORT, host_name
from longarm_edge.tunnel.settings import SshSettings

DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
MOST_INCLUDES = 16  # as ssh itself


@dataclass(frozen=True)
class Hop:
    """One SSH server on the way.

    Attributes:
      host: Name or address to dial.
      port: Port to dial.
      user: To log in as.
      known_as: Its name in known_hosts.
      identity_files: Private keys to offer, those that exist.
    """

    host: str
    port: int
    user: str
    known_as: str
    identity_files: list[Path] = field(default_factory=list)


def route(settings: SshSettings) -> list[Hop]:
    """Returns the SSH servers from the first jump host to the one that forwards.

    Raises:
      PermanentTunnelError: The configuration file cannot be read, or asks for what only ssh itself can do.
    """
    config = _read(settings.config_file)
    target, jumps = _hop(config, settings.host, settings.user, settings.port)
    hops: list[Hop] = []
    for jump in jumps:
        found = re.fullmatch(r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?P<host>\[[^]]+\]|[^:]+)(?::(?P<port>\d+))?/?", jump)
        if found is None:
            raise PermanentTunnelError(Cause.CONFIGURATION, f"ProxyJump {jump!r} is not user@host:port.")
        # A jump host's own ProxyJump counts only for the first, as the others are reached through it
        hop, further = _hop(config, found["host"].strip("[]"), found["user"] or "", int(found["port"] or 0))
        if further and not hops:
            raise PermanentTunnelError(
                Cause.CONFIGURATION,
                f"The jump host {jump} has a ProxyJump of its own. List both in one ProxyJump, or set "
                "LONGARM_EDGE_SSH__BACKEND=openssh.",
            )
        hops.append(hop)
    return [*hops, target]


def _hop(config: paramiko.SSHConfig, name: str, user: str, port: int) -> tuple[Hop, list[str]]:
    """Returns a host and the jump hosts before it."""
    try:
        found = config.lookup(name)
        port = port or int(found.get("port", SSH_PORT))
    except (paramiko.SSHException, ValueError, OSError, ImportError) as error:
        raise PermanentTunnelError(
            Cause.CONFIGURATION, f"The SSH configuration of {name} cannot be used: {error}"
        ) from error
    jump = found.get("proxyjump", "")
    if not jump or jump.lower() == "none":
        jump = ""
        if found.get("proxycommand", "none").lower() != "none":
            raise PermanentTunnelError(
                Cause.CONFIGURATION,
                f"The SSH configuration of {name} has a ProxyCommand, which takes LONGARM_EDGE_SSH__BACKEND=openssh.",
            )
    host = found["hostname"]
    default_files = [f"~/.ssh/{key}" for key in DEFAULT_KEYS]
    files = [Path(file).expanduser() for file in found.get("identityfile", default_files)]
    hop = Hop(
        host=host,
        port=port,
        user=user or found.get("user") or _local_user(),
        known_as=found.get("hostkeyalias") or host_name(host, port),
        identity_files=[file for file in files if file.is_file()],
    )
    return hop, [part.strip() for part in jump.split(",") if part.strip()]


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise PermanentTunnelError(
            Cause.CONFIGURATION, "The local user has no name, as in some containers: set LONGARM_EDGE_SSH__USER."
        ) from error


def _read(file: Path | None) -> paramiko.SSHConfig:
    if file is None or not file.exists():
        return paramiko.SSHConfig()
    try:
        return paramiko.SSHConfig.from_text(_with_includes(file, MOST_INCLUDES))
    except (paramiko.SSHException, OSError, UnicodeDecodeError) as error:
        raise PermanentTunnelError(
            Cause.CONFIGURATION, f"The SSH configuration file {file} cannot be used: {error}"
        ) from error


def _with_includes(file: Path, depth: int) -> str:
    """Returns the file's text with what it includes in place; paramiko knows no Include."""
    lines, block = [], "Host *"
    for line in file.read_text().splitlines():
        words = line.strip().replace("=", " ", 1).split()
        keyword = words[0].lower() if words else ""
        if keyword in ("host", "match"):
            block = line
        if keyword != "include":
            lines.append(line)
            continue
        for pattern in words[1:]:
            path = Path(pattern.strip('"')).expanduser()
            for found in sorted(glob.glob(str(Path("~/.ssh").expanduser() / path))):  # noqa: PTH207  # absolute ones too
                if depth and Path(found).is_file():
                    # What follows belongs to the block that the Include stands in, whatever the included file began
                    lines += [_with_includes(Path(found), depth - 1), block]
    return "\n".join(lines)
