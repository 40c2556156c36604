"""Dialling a machine whose link may come back at any moment."""

import errno
import itertools
import os
import select
import socket
import time
from typing import Any

# An attempt that gets no answer is repeated by TCP after 1, 3, 7, … s: a link that is back may go unnoticed for as long
# as it was gone. A fresh attempt notices it at once
ATTEMPT_SECONDS = 0.25
# How many are on the way at a time. The first one stays: over a link of seconds it is the one that gets through
MAX_ATTEMPTS = 8


def open_connection(host: str, port: int, timeout: float) -> socket.socket:
    """Returns a TCP connection, from the first attempt that gets through.

    An attempt is made every ATTEMPT_SECONDS, to the addresses of the host in turn.

    Raises:
      socket.gaierror, UnicodeError: The host has no address.
      TimeoutError: None got through within timeout seconds.
      OSError: Every address refuses.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    turns = itertools.cycle(addresses)
    deadline = time.monotonic() + timeout
    next_attempt = 0.0
    attempts: list[socket.socket] = []
    refusals: list[int] = []
    try:
        while (now := time.monotonic()) < deadline:
            if now >= next_attempt:
                next_attempt = now + ATTEMPT_SECONDS
                try:
                    attempts.append(_begin(*next(turns)))
                except OSError as error:  # no route, or a kind of address that this machine does not have
                    refusals.append(error.errno or errno.EHOSTUNREACH)
                if len(attempts) > MAX_ATTEMPTS:
                    attempts.pop(1).close()
            pause = max(0.0, min(next_attempt, deadline) - now) if attempts else 0.0
            _, decided, _ = select.select([], attempts, [], pause)
            for attempt in decided:
                attempts.remove(attempt)
                code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    attempt.setblocking(True)
                    return attempt
                attempt.close()
                refusals.append(code)
            if refusals and not attempts:
                if len(refusals) >= len(addresses):
                    raise OSError(refusals[-1], os.strerror(refusals[-1]))
                next_attempt = 0.0  # the next address at once
    finally:
        for attempt in attempts:
            attempt.close()
    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _begin(family: int, kind: int, protocol: int, _: str, address: Any) -> socket.socket:
    """Returns a socket on its way to address. Raises OSError if there is no way."""
    attempt = socket.socket(family, kind, protocol)
    attempt.setblocking(False)
    code = attempt.connect_ex(address)
    if code not in (0, errno.EINPROGRESS):
        attempt.close()
        raise OSError(code, os.strerror(code))
    return attempt
