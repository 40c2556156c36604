"""How a tunnel fails.

TunnelError             worth another try
└── PermanentTunnelError    can never work as configured: exit code 3
"""

from enum import StrEnum


class Cause(StrEnum):
    """The step at which a tunnel failed, or what ended it. A closed set, also of metric labels."""

    LOCAL_PORT = "local_port"
    """A local port is taken."""
    CONFIGURATION = "configuration"
    """The SSH configuration file cannot be used, or the ssh program is missing or too old."""
    KEY_FILE = "key_file"
    """The private key cannot be read or is none."""
    PASSPHRASE = "passphrase"  # noqa: S105
    """The private key's passphrase is missing or wrong."""
    DNS = "dns"
    """The host's name has no address."""
    TCP = "tcp"
    """The address does not answer, or refuses."""
    HANDSHAKE = "handshake"
    """Whatever answers does not complete the SSH handshake."""
    HOST_KEY_UNKNOWN = "host_key_unknown"
    """The host's key is not known and nobody vouched for it."""
    HOST_KEY_CHANGED = "host_key_changed"
    """The host has another key than the one expected."""
    AUTHENTICATION = "authentication"
    """The SSH server refuses the login."""
    FORWARD_REFUSED = "forward_refused"
    """The SSH server refuses to forward the port."""
    SERVICE = "service"
    """The link stands and the service does not answer through it."""
    SILENT = "silent"
    """The link gave no sign of life for too long."""
    CLOSED = "closed"
    """The far side, or the network, closed the link."""
    PROCESS = "process"
    """The tunnel's own process ended."""


class TunnelError(Exception):
    """The tunnel is not up.

    Attributes:
      cause: The step that failed.
      message: What was expected, what was found, and what to do. No secret.
    """

    def __init__(self, cause: Cause, message: str) -> None:
        # Before the host key is checked anybody may have had a say in it: nothing for a terminal to obey
        message = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in message)
        super().__init__(message)
        self.cause = cause
        self.message = message


class PermanentTunnelError(TunnelError):
    """No further try can end otherwise: the configuration, a key or the far side has to change first."""
