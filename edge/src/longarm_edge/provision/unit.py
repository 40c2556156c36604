"""The systemd unit under which the supervisor runs where systemd is there: it then starts with the machine as well."""

from collections.abc import Iterable

from longarm_wire import exit_codes

UNIT_NAME = "longarm-up.service"
# Longer than the supervisor's own patience with its service
STOP_SECONDS = 45
# Seconds between starts: long enough never to meet systemd's start limit (5 in 10 s)
RESTART_SECONDS = 5


def render(directory: str, *, scope: str, secret_names: Iterable[str]) -> str:
    """Returns the unit's text.

    Args:
      directory: Longarm's on that machine, absolute, with nothing in it that systemd or a shell takes as its own.
      scope: user or system, whose manager runs it.
      secret_names: Variables that the manager has in memory and hands on.
    """
    names = " ".join(sorted(secret_names))
    # A user's manager hands everything on by itself; `down` reads here what it has to forget
    pass_on = f"PassEnvironment={names}\n" if names else ""
    return f"""\
# Written by `longarm-edge up`, removed by `longarm-edge down`. Do not edit: the next `up` writes it anew.
[Unit]
Description=Longarm policy service
After=network.target

[Service]
Type=exec
ExecStart="{directory}/venv/bin/python" -m longarm_service.supervisor "{directory}"
{pass_on}Restart=on-failure
RestartSec={RESTART_SECONDS}
RestartPreventExitStatus={exit_codes.CANNOT_START}
KillMode=mixed
TimeoutStopSec={STOP_SECONDS}

[Install]
WantedBy={"default.target" if scope == "user" else "multi-user.target"}
"""
