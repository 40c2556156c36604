"""The SSH tunnel to the policy service: opens by itself, keeps itself up, and cannot disturb the control loop.

Its metrics are in longarm_edge.tunnel.metrics: the tunnel's own process has no use for them.
"""

from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.events import Event, HostKeyQuestion, Probed, State, StateChanged, Warned
from longarm_edge.tunnel.settings import Backend, HostKeyPolicy, SshSettings
from longarm_edge.tunnel.terminal import ask_on_terminal, asker
from longarm_edge.tunnel.tunnel import Tunnel

__all__ = [
    "Backend",
    "Cause",
    "Event",
    "HostKeyPolicy",
    "HostKeyQuestion",
    "PermanentTunnelError",
    "Probed",
    "SshSettings",
    "State",
    "StateChanged",
    "Tunnel",
    "TunnelError",
    "Warned",
    "ask_on_terminal",
    "asker",
]
