"""What ssh says when it gives up, and what it means."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from longarm_edge.tunnel import refusals
from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.settings import SshSettings


class _Saying(NamedTuple):
    """A pattern to look for, the step that has failed, what to do, and whether another try is of no use."""

    pattern: str
    cause: Cause
    advice: str = ""
    permanent: bool = False


CONFIGURE = "Longarm needs OpenSSH 8.5 or newer; or set LONGARM_EDGE_SSH__BACKEND=paramiko."
_DIAL = "Check that the machine and its SSH server run, and the port (LONGARM_EDGE_SSH__PORT)."
_ALLOW = "The jump host has to allow it: AllowTcpForwarding and PermitOpen in its sshd_config."
_AGREE = "Allow one of these in ~/.ssh/config (KexAlgorithms, Ciphers, MACs …), or bring the SSH server up to date."
_DENIED = r"Permission denied \(([\w,-]*)\)"
# Said of a server that left before it gave its version, each in turn with another end
_HUNG_UP = re.compile(r"^kex_exchange_identification: (Connection closed|read: |write: )")
# The first that is found counts
_SAYINGS = (
    _Saying(_DENIED, Cause.AUTHENTICATION, permanent=True),
    _Saying(r"Too many authentication failures|No more authentication methods", Cause.AUTHENTICATION, permanent=True),
    _Saying(r"^channel \d+: open failed: administratively prohibited", Cause.FORWARD_REFUSED, _ALLOW, permanent=True),
    _Saying(r"^channel \d+: open failed", Cause.TCP, _DIAL),
    _Saying(r"Could not resolve hostname", Cause.DNS, "Check LONGARM_EDGE_SSH__HOST and the network."),
    _Saying(r"ssh: connect to (host|address) ", Cause.TCP, _DIAL),
    _Saying(r"Address already in use|Could not request local forwarding|cannot listen to port", Cause.LOCAL_PORT),
    _Saying(
        r"Bad configuration option|Bad owner or permissions|bad configuration|Unsupported option",
        Cause.CONFIGURATION,
        CONFIGURE,
        permanent=True,
    ),
    _Saying(r"Unable to negotiate", Cause.HANDSHAKE, _AGREE, permanent=True),
    _Saying(r"banner exchange|timed out", Cause.HANDSHAKE, "Check that an SSH server answers there."),
)


def meaning(lines: Sequence[str], settings: SshSettings, *, direct: bool) -> TunnelError | None:
    """Returns why there is no connection, None if ssh's lines do not say.

    Args:
      lines: What it said before and while it gave up.
      settings: What it had to work with.
      direct: Whether there is no other server on the way, of which the lines may speak.
    """
    who = settings.host if direct else f"A server on the way to {settings.host}"
    for line in lines:
        if said := refusals.TURNED_AWAY.search(line):
            return refusals.turned_away(who, said[0])
        if refusals.PASSWORD_EXPIRED.search(line):
            return refusals.password_expired(settings)
    for saying in _SAYINGS:
        for line in lines:
            if re.search(saying.pattern, line):
                kind = PermanentTunnelError if saying.permanent else TunnelError
                advice = saying.advice
                if saying.cause is Cause.AUTHENTICATION:
                    # With several servers on the way, which one it is that refuses is not said
                    denied = re.search(_DENIED, line) if direct else None
                    takes = denied[1].split(",") if denied else ()
                    advice = refusals.login_advice(takes, password=bool(settings.read_password()))
                return kind(saying.cause, f"ssh says: {line.rstrip('.')}. {advice}".strip())
    return refusals.hung_up(who) if any(map(_HUNG_UP.search, lines)) else None
