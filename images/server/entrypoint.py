"""What the server image runs: longarm-service with the arguments given, and beside it an sshd where one is wanted.

Alone, the service takes this process's place. With the sshd, the two live and end together, and the exit code is the
service's: a signal goes to the service, which answers what it has in hand while the robots' connections still stand.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from sshd import SshdSettings, prepare

from longarm_service.settings import ServiceSettings
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError

SERVICE = "longarm-service"
PROGRAM = "longarm-server"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code, if it returns at all."""
    runs = not arguments or arguments[0] == "run" or arguments[0].startswith("--")
    try:
        settings = SshdSettings.load([], program=PROGRAM)
        if arguments[:1] == ["check-config"]:
            print(*(f"{name}={value}" for name, value in settings.effective().items()), sep="\n", flush=True)  # noqa: T201
        if not (runs and settings.wanted) or {"--help", "-h", "--version"} & {*arguments}:
            os.execvp(SERVICE, [SERVICE, *arguments])  # noqa: S606
        flags = arguments[1:] if arguments[:1] == ["run"] else arguments
        service = ServiceSettings.load(flags, program=f"{SERVICE} run")
        command, fingerprint = prepare(settings, (service.port, service.metrics_port))
    except ConfigurationError as error:
        for problem in error.problems:
            _say(problem)
        return exit_codes.CANNOT_START
    _say(f"sshd listens on port {settings.port}. Its host key: LONGARM_EDGE_SSH__HOST_KEY_FINGERPRINT={fingerprint}")
    return run([SERVICE, *arguments], command)


def run(service_command: Sequence[str], sshd_command: Sequence[str]) -> int:
    """Runs both until one ends, then ends the other, and returns an exit code."""
    sshd = subprocess.Popen(sshd_command)  # noqa: S603
    service = subprocess.Popen(service_command)  # noqa: S603
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not Popen's own way, which would collect an exit code behind os.wait's back
        signal.signal(number, lambda number, _: os.kill(service.pid, number))
    while (ended := os.wait())[0] not in (sshd.pid, service.pid):
        pass  # an orphan
    if ended[0] == sshd.pid:
        _say(f"sshd ended by itself (exit code {os.waitstatus_to_exitcode(ended[1])}): the service ends with it.")
        service.terminate()
        service.wait()
        return exit_codes.FAILED
    sshd.terminate()
    sshd.wait()
    code = os.waitstatus_to_exitcode(ended[1])
    # The shell's convention for a process that a signal ended
    return code if code >= 0 else 128 - code


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
