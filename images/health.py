"""Asks the process in this container for its health, and exits with 0 or 1: for HEALTHCHECK.

usage: health.py PREFIX PORT PATH, such as health.py LONGARM_EDGE 9101 /healthz

It runs every few seconds beside a control loop, so it is the one place that reads variables without loading all
settings, which takes a thousand times as long. A test ties its defaults to theirs.
"""

import http.client
import os
import sys

SECONDS = 4
EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104  # compared with, not bound to


def main(prefix: str, port: str, path: str) -> int:
    """Returns 0 if the answer is 200, and prints the answer."""
    host = os.environ.get(f"{prefix}_METRICS_HOST", "")
    port = os.environ.get(f"{prefix}_METRICS_PORT", port)
    connection = http.client.HTTPConnection("127.0.0.1" if host in EVERYWHERE else host, int(port), timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        print(answer.read().decode(errors="replace").strip())  # noqa: T201
    except OSError as error:
        print(f"no answer on port {port}: {error}")  # noqa: T201
        return 1
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
