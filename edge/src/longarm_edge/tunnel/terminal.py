"""Asks a person about a host key."""

import sys
from collections.abc import Callable

from longarm_edge.tunnel.events import HostKeyQuestion


def ask_on_terminal(question: HostKeyQuestion) -> bool:
    """Returns whether the person at the terminal accepts the key. Anything but a clear yes is a no.

    For when sys.stdin is a terminal.
    """
    kind = question.key_type.removeprefix("ssh-").removeprefix("ecdsa-sha2-").upper()
    sys.stderr.write(
        f"The host {question.host} is not known yet.\n"
        f"Its {kind} key has the fingerprint {question.fingerprint}\n"
        "Compare it with the one your provider shows, or that `ssh-keygen -lf` prints on the machine itself.\n"
    )
    while True:
        sys.stderr.write(f"Trust it and remember it in {question.known_hosts_file}? (yes/no) ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
        if not answer:
            return False
        if answer.strip().lower() in ("yes", "no"):
            return answer.strip().lower() == "yes"


def asker() -> Callable[[HostKeyQuestion], bool] | None:
    """Returns ask_on_terminal where a person sits at one, else None."""
    return ask_on_terminal if sys.stdin is not None and sys.stdin.isatty() else None
