"""What ssh is told: a configuration for every host on the way, and options for the target alone."""

import os
import subprocess
from pathlib import Path

from longarm_edge.tunnel import sayings
from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.link import Route
from longarm_edge.tunnel.questions import Questions
from longarm_edge.tunnel.settings import SshSettings

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")


def configuration(settings: SshSettings, questions: Questions, patience: float) -> str:
    """Returns a configuration for every host on the way. What comes first wins, so the user's own comes last.

    Args:
      settings: Where to and how.
      questions: Answers what ssh asks.
      patience: Seconds of silence, in the login and after it, that ssh may take for an end.
    """
    files = [file for file in (settings.config_file, SYSTEM_CONFIG) if file is not None and file.is_file()]
    secrets = settings.read_password() or settings.read_passphrase()
    # ssh counts seconds: one of silence before the first question, one for each without an answer
    count = max(1, round(patience) - 1)
    return "\n".join(
        [
            f"KnownHostsCommand {questions.command('host-key')} %I %n %k %p %H %t %K",
            "StrictHostKeyChecking yes",
            "UserKnownHostsFile none",
            "GlobalKnownHostsFile none",
            "CheckHostIP no",
            "UpdateHostKeys no",
            "HashKnownHosts no",
            f"BatchMode {'no' if secrets else 'yes'}",
            "NumberOfPasswordPrompts 1",
            "ServerAliveInterval 1",
            f"ServerAliveCountMax {count}",
            f"ConnectTimeout {max(1, round(settings.connect_timeout))}",
            "TCPKeepAlive yes",
            "ControlMaster no",
            "ControlPath none",
            "ForwardAgent no",
            "ForwardX11 no",
            "PermitLocalCommand no",
            "AddKeysToAgent no",
            "Compression no",
            "Ciphers ^aes128-gcm@openssh.com",
            # ssh marks what is no terminal as bulk, which a wireless network then lets wait
            "IPQoS none",
            "LogLevel DEBUG1",  # below it, ssh does not say which forward it was that failed
            *([] if settings.agent else ["IdentityAgent none"]),
            *(f'Include "{file}"' for file in files),
            # The password is given once: rather to who takes just that than to who may ask for anything
            "PreferredAuthentications gssapi-with-mic,hostbased,publickey,password,keyboard-interactive",
            "",
        ]
    )


def options(route: Route, config: Path, questions: Questions, *, direct: bool) -> list[str]:
    """Returns the options for the target alone; direct: whether nothing but us stands between ssh and it."""
    settings = route.settings
    found = ["-F", str(config), "-T", "-o", "ExitOnForwardFailure=yes", "-o", "RemoteCommand=none"]
    if direct:
        found += ["-o", f"ProxyCommand={questions.command('dial')} %h %p", "-o", "ProxyUseFdpass=yes"]
    # A socket that a killed ssh left behind is in nobody's way
    found += ["-o", "StreamLocalBindUnlink=yes"]
    for path, port in route.forwards.items():
        found += ["-L", f"{path}:127.0.0.1:{port}"]
    return found + _target(settings)


def _target(settings: SshSettings) -> list[str]:
    options = []
    if settings.port:
        options += ["-p", str(settings.port)]
    if settings.user:
        options += ["-l", settings.user]
    if settings.key_file is not None:
        # The agent may do the work for this key, and offers no other
        options += ["-i", str(settings.key_file), "-o", "IdentitiesOnly=yes"]
    return options


def effective(config: Path, settings: SshSettings) -> dict[str, str]:
    """Returns what ssh makes of its configuration, by option in lower case.

    Raises:
      TunnelError: It takes too long; PermanentTunnelError if ssh refuses it.
    """
    try:
        found = subprocess.run(  # noqa: S603  # the user's own configuration
            ["ssh", "-G", "-F", str(config), *_target(settings), "--", settings.host],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=settings.connect_timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise TunnelError(
            Cause.CONFIGURATION,
            f"ssh does not get through its configuration within {settings.connect_timeout:g} s. Check what runs for "
            "Match exec there.",
        ) from error
    if found.returncode:
        raise PermanentTunnelError(Cause.CONFIGURATION, f"ssh says: {found.stderr.strip()}. {sayings.CONFIGURE}")
    return dict(line.split(" ", 1) for line in found.stdout.splitlines() if " " in line)


def environment(questions: Questions) -> dict[str, str]:
    """Returns ssh's environment, in which questions answers what it asks."""
    asking = {"SSH_ASKPASS": str(questions.program("secret")), "SSH_ASKPASS_REQUIRE": "force"}
    # Messages are read, so they have to be in the language they are looked for in
    return {**os.environ, **asking, "LC_ALL": "C"}
