"""What a process tells the service manager that started it: systemd's notification protocol, as sd_notify(3) has it."""

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends notifications to systemd, and does nothing where none listens. Never waits, never raises.

    Attributes:
      watchdog_seconds: How soon systemd wants the next sign of life (WATCHDOG=1), None if it wants none.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from environment; an empty one makes it silent."""
        name = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte with which the name of an abstract socket begins
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self.watchdog_seconds: float | None = None
        # A child inherits the variables; the watchdog waits for the process that it names
        meant = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        microseconds = environment.get("WATCHDOG_USEC", "")
        if self._address and meant and microseconds.isdecimal() and int(microseconds):
            self.watchdog_seconds = int(microseconds) / 1e6

    def tell(self, *assignments: str) -> bool:
        """Sends assignments such as READY=1 in one message. Returns False if it got lost: the manager is busy, say."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            return False
        return True
