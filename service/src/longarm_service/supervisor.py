"""Keeps a policy service running on a machine without systemd: survives the login that started it, and its crashes.

usage: python -m longarm_service.supervisor DIRECTORY [--detach | --wait SECONDS]

`longarm-edge up` installs and starts it. All that it uses lies in DIRECTORY:

  run/service.json   {"revision": text, "environment": {name: text}}, the service's; no secrets, they are inherited
  run/state          key=value lines: who runs, and how it stands; written here
  run/announce.json  the service's ports, written by the service
  run/lock           held while a supervisor runs
  logs/service.log   what the service and the supervisor say; rotated

SIGTERM ends the service in good order and then the supervisor; SIGHUP starts the service anew. The service ends with
its supervisor. A service that ends with CANNOT_START is not started again, nor is one that ended as it was told.
"""

import argparse
import ctypes
import fcntl
import io
import json
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO

from longarm_service import __version__
from longarm_wire import exit_codes

# Pauses before a service that ended is started again: doubling, and short again once it lasted
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
LASTING_SECONDS = 60.0
# Longer than the service's own drain_timeout; then it is killed
STOP_SECONDS = 30
LOG_BYTES = 5_000_000
OLD_LOGS = 3
# A service that ended this often before it was ready is not worth waiting for
HOPELESS_RESTARTS = 3
STARTING = "supervisor: starting the service"
COMMAND = (sys.executable, "-m", "longarm_service", "run")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

logger = logging.getLogger("supervisor")


class Supervisor:
    """One service and its successors."""

    def __init__(self, directory: Path) -> None:
        """Reads what to run from directory, which is as above."""
        self._run_directory = directory / "run"
        self._directory = directory
        config = json.loads((self._run_directory / "service.json").read_text(encoding="utf-8"))
        self._revision: str = config["revision"]
        self._announce = self._run_directory / "announce.json"
        # What is printed should be in the log when it happens, not when the process ends
        own = {"PYTHONUNBUFFERED": "1", "LONGARM_SERVICE_ANNOUNCE": str(self._announce)}
        self._environment = {**os.environ, **config["environment"], **own}
        self._child: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._last_exit: int | None = None
        self._stopping = False
        self._restarting = False
        self._wake = threading.Event()

    def run(self) -> int:
        """Returns an exit code once the service is not to be started again."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_restart)
        signal.signal(signal.SIGALRM, self._on_out_of_patience)
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            code = self._run_once()
            if self._stopping or (code == exit_codes.DONE and not self._restarting):
                logger.info("supervisor: stopped")
                self._write_state("stopped")
                return exit_codes.DONE
            if code == exit_codes.CANNOT_START:
                logger.error("supervisor: the service can never start as configured")
                self._write_state("failed")
                return code
            self._restarts += 1
            if self._restarting:
                continue
            if time.monotonic() - began > LASTING_SECONDS:
                pause = FIRST_PAUSE
            logger.warning("supervisor: the service ended (%s), next try in %g s", _words(code), pause)
            self._write_state("waiting")
            self._wake.clear()
            if not self._stopping:
                self._wake.wait(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

    def _run_once(self) -> int:
        """Starts the service and returns its exit code, negative for a signal."""
        if self._stopping:
            return exit_codes.DONE
        self._restarting = False
        # After a kill -9 it is still there, with ports that nobody listens on
        self._announce.unlink(missing_ok=True)
        logger.info(STARTING)
        child = subprocess.Popen(  # noqa: S603
            COMMAND,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # one prctl, bound before the fork
        )
        self._child = child
        assert child.stdout is not None  # noqa: S101
        threading.Thread(target=_copy_log, args=(child.stdout,), daemon=True).start()
        self._write_state("running")
        if self._stopping:
            child.terminate()
        code = child.wait()
        signal.alarm(0)
        # What it left behind would keep GPU memory and the log's pipe
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        self._child, self._last_exit = None, code
        return code

    def _on_stop(self, *_: object) -> None:
        self._stopping = True
        self._end_child()

    def _on_restart(self, *_: object) -> None:
        self._restarting = True
        self._end_child()

    def _end_child(self) -> None:
        self._wake.set()
        if self._child is not None:
            self._child.terminate()
            signal.alarm(STOP_SECONDS)

    def _on_out_of_patience(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()

    def _write_state(self, state: str) -> None:
        facts = {
            "state": state,
            "supervisor": os.getpid(),
            "service": self._child.pid if self._child is not None else "",
            "restarts": self._restarts,
            "exit": "" if self._last_exit is None else _words(self._last_exit),
            "version": __version__,
            "revision": self._revision,
        }
        path = self._run_directory / "state"
        # In one step, so that nobody reads half of it
        draft = path.with_name("state.new")
        draft.write_text("".join(f"{name}={value}\n" for name, value in facts.items()), encoding="utf-8")
        draft.replace(path)


def wait_until_ready(directory: Path, timeout: float, out: TextIO) -> int:
    """Returns an exit code once the service is ready, 0, or will not be. Until then copies its log to out.

    Args:
      directory: The supervisor's.
      timeout: Seconds to wait.
      out: Gets the lines since the last start.
    """
    if _is_ready(directory):
        return exit_codes.DONE
    deadline = time.monotonic() + timeout
    lines = _lines_since_start(directory / "logs" / "service.log")
    restarts_before: int | None = None
    while True:
        state = read_state(directory)
        ready = _is_ready(directory)
        # After the state: what the service said last is there by now
        for line in lines:
            if line is None:
                break
            print(line, file=out, flush=True)
        if ready:
            return exit_codes.DONE
        if state.get("state") == "failed":
            return exit_codes.CANNOT_START
        restarts = int(state.get("restarts", "0"))
        restarts_before = restarts if restarts_before is None else restarts_before
        if state.get("state") == "stopped" or restarts - restarts_before >= HOPELESS_RESTARTS:
            return exit_codes.FAILED
        if time.monotonic() > deadline:
            print(f"not ready within {timeout:g} s", file=out, flush=True)
            return exit_codes.FAILED
        time.sleep(0.2)


def read_state(directory: Path) -> dict[str, str]:
    """Returns what the supervisor wrote, nothing if there never was one."""
    with suppress(FileNotFoundError):
        text = (directory / "run" / "state").read_text(encoding="utf-8")
        return dict(line.split("=", 1) for line in text.splitlines())
    return {}


def _is_ready(directory: Path) -> bool:
    try:
        port = json.loads((directory / "run" / "announce.json").read_text(encoding="utf-8"))["metrics_port"]
        # Not through a proxy that the environment may name
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except (OSError, ValueError, KeyError):
        return False


def _lines_since_start(path: Path) -> Iterator[str | None]:
    """Yields the log's lines since the service last started, then whatever is added, None when there is no more yet."""
    position, rest = 0, ""
    with suppress(FileNotFoundError):
        position = max(0, path.read_bytes().rfind(STARTING.encode()))
    while True:
        with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as log:
            if position > path.stat().st_size:
                position, rest = 0, ""  # rotated
            log.seek(position)
            *whole, rest = (rest + log.read()).split("\n")
            position = log.tell()
            yield from whole
        yield None


def _copy_log(output: IO[bytes]) -> None:
    # Universal newlines: a progress bar redraws itself with \r and would never end a line
    with suppress(ValueError, OSError):
        for line in io.TextIOWrapper(output, encoding="utf-8", errors="replace"):
            logger.info("%s", line.rstrip())


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _words(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _lock(directory: Path) -> int | None:
    """Returns the lock's descriptor, None if another supervisor has it. Inherited by forks, not by programs."""
    descriptor = os.open(directory / "run" / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _detach() -> None:
    """Leaves the session and the terminal of whoever started this process. Returns in the new process only."""
    if os.fork():
        os._exit(exit_codes.DONE)
    os.setsid()
    if os.fork():
        os._exit(exit_codes.DONE)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _set_up_logging(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="longarm_service.supervisor", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--detach", action="store_true", help="go on after whoever starts it is gone")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="run nothing; wait until the service is ready")
    options = parser.parse_args(arguments)
    directory: Path = options.directory.resolve()
    if options.wait is not None:
        return wait_until_ready(directory, options.wait, sys.stdout)
    os.umask(0o077)
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    if _lock(directory) is None:
        sys.stderr.write(f"a supervisor already runs in {directory}\n")
        return exit_codes.FAILED
    supervisor = Supervisor(directory)
    # Whoever waits from now on must not take the last run for this one
    (directory / "run" / "state").unlink(missing_ok=True)
    if options.detach:
        _detach()
    _set_up_logging(directory / "logs" / "service.log")
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
