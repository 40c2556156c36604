"""How bringing up a service fails.

ProvisionError             something failed on the way; running the command again goes on from there
├── FarCommandError        a script ended with an error on the far side
├── PortTakenError         somebody else took the service's port first; the next look sees that
└── ConnectionLostError    the SSH connection broke; what was running there is stopped

What can never work as things are is longarm_wire.settings.ConfigurationError, with a line for each problem.
"""

from collections.abc import Sequence


class ProvisionError(Exception):
    """It did not work. The message says what was expected, what was found and what to do."""


class FarCommandError(ProvisionError):
    """A script ended with an error on the far side.

    Attributes:
      code: Its exit code.
      lines: What it said.
    """

    def __init__(self, code: int, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines[-12:]) or f"exit code {code}")
        self.code = code
        self.lines = tuple(lines)


class ConnectionLostError(ProvisionError):
    """The SSH connection broke."""


class PortTakenError(ProvisionError):
    """The service cannot have one of its ports: another program on the far machine took it first."""
