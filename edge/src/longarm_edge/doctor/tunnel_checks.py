"""The steps on the way through SSH, each with a verdict of its own."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from longarm_edge.doctor.findings import Finding, Steps, Verdict
from longarm_edge.tunnel import Cause, SshSettings, Tunnel, TunnelError
from longarm_edge.tunnel.tunnel import Ask

# In the order in which a connection takes them; a cause that is in none of them belongs to the last
STEPS: Mapping[str, frozenset[Cause]] = {
    "ssh settings": frozenset({Cause.CONFIGURATION, Cause.LOCAL_PORT, Cause.KEY_FILE, Cause.PASSPHRASE}),
    "ssh address": frozenset({Cause.DNS}),
    "ssh server": frozenset({Cause.TCP, Cause.HANDSHAKE}),
    "host key": frozenset({Cause.HOST_KEY_UNKNOWN, Cause.HOST_KEY_CHANGED}),
    "ssh login": frozenset({Cause.AUTHENTICATION}),
    "tunnel": frozenset({Cause.FORWARD_REFUSED, Cause.SERVICE, Cause.SILENT, Cause.CLOSED, Cause.PROCESS}),
}


def check_tunnel(settings: SshSettings, timeout: float, stack: ExitStack, ask: Ask | None) -> Steps[Tunnel | None]:
    """Yields a finding for each step and returns the tunnel, None if it is not up.

    Args:
      settings: Where to and how.
      timeout: Seconds for all steps together.
      stack: Closes the tunnel.
      ask: Decides about the key of a host that is not known yet.
    """
    try:
        tunnel = stack.enter_context(Tunnel(settings, ask=ask))
        tunnel.open(timeout)
    except TunnelError as error:
        yield from _failed_at(error)
        return None
    for step in STEPS:
        yield Finding(step, Verdict.OK, _passed(step, settings))
    return tunnel


def _failed_at(error: TunnelError) -> Iterator[Finding]:
    failed = next(step for step, causes in STEPS.items() if error.cause in causes)
    verdict = Verdict.OK
    for step in STEPS:
        if step == failed:
            yield Finding(step, Verdict.FAILED, str(error))
            verdict = Verdict.SKIPPED
        else:
            yield Finding(step, verdict, "passed" if verdict is Verdict.OK else "comes after the step that failed")


def _passed(step: str, settings: SshSettings) -> str:
    match step:
        case "ssh address":
            return settings.host
        case "tunnel":
            return f"up by {settings.backend.value}: the service answers through it"
        case _:
            return "passed"
