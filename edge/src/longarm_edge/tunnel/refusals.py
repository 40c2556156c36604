"""What it means when an SSH server lets nobody in, in the words of both backends."""

import re
import shlex
from collections.abc import Collection

from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.settings import SshSettings

# What sshd says in place of its version to who is one too many, or has failed to log in too often
TURNED_AWAY = re.compile(r"Exceeded MaxStartups|Not allowed at this time")
# sshd, PAM and passwd, each in its own words
PASSWORD_EXPIRED = re.compile(r"password has expired|required to change your password|password change required", re.I)
# The ways to log in by password, in the words of SSH
BY_PASSWORD = frozenset({"password", "keyboard-interactive"})


def turned_away(host: str, said: str) -> TunnelError:
    """Returns the error for an SSH server that takes no more connections for now, with what it said."""
    return TunnelError(
        Cause.HANDSHAKE,
        f"{host} turns new connections away for now ({said}): too many logins are under way there (MaxStartups "
        "in its sshd_config), or too many from here have failed.",
    )


def hung_up(host: str) -> TunnelError:
    """Returns the error for a server that closes the connection before it has said anything."""
    return TunnelError(
        Cause.HANDSHAKE,
        f"{host} hangs up before it has said what it is. An SSH server does so to who is one too many, or connects too "
        "often (MaxStartups, PerSourcePenalties, fail2ban): LONGARM_EDGE_SSH__RECONNECT_CAP=10 asks it less often. "
        "Else check that an SSH server answers there, and LONGARM_EDGE_SSH__PORT.",
    )


def password_expired(settings: SshSettings) -> PermanentTunnelError:
    """Returns the error for an account that may do nothing but change its password."""
    port = ["-p", str(settings.port)] if settings.port else []
    command = shlex.join(["ssh", *port, f"{settings.user}@{settings.host}" if settings.user else settings.host])
    return PermanentTunnelError(
        Cause.AUTHENTICATION,
        "The password of the account has expired, and until it is changed the SSH server allows nothing else. Change "
        f"it by {command} and, where Longarm logs in by it, in LONGARM_EDGE_SSH__PASSWORD_FILE.",
    )


def login_advice(takes: Collection[str], *, password: bool, tried: bool = True, jump: bool = False) -> str:
    """Returns what to do about a login that was refused.

    Args:
      takes: The ways to log in that the server takes, in the words of SSH; empty if it did not say.
      password: Whether there is a password for this server.
      tried: Whether anything that there is could be tried.
      jump: Whether it is a jump host, to which the password does not go.
    """
    takes_key, takes_password = "publickey" in takes, not BY_PASSWORD.isdisjoint(takes)
    if jump:
        return (
            "The password goes to the target alone, so a jump host has to take a key: LONGARM_EDGE_SSH__KEY_FILE, or "
            "its IdentityFile in ~/.ssh/config."
        )
    if takes_password and not takes_key and not password:
        return "It takes no key: set LONGARM_EDGE_SSH__PASSWORD_FILE."
    if takes_key and not takes_password and not tried:
        return "It takes no password, and there was no key to offer: set LONGARM_EDGE_SSH__KEY_FILE."
    if not tried:
        return "There was no key and no password to offer: set LONGARM_EDGE_SSH__KEY_FILE or __PASSWORD_FILE."
    return "Check LONGARM_EDGE_SSH__USER, __KEY_FILE and __PASSWORD_FILE."
