"""Child processes: started with a log, stopped for sure, and their processor time."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from longarm_edge.tunnel.local_sshd import descendants

STOP_TIMEOUT = 8.0


class Child:
    """A process with a log file and a standard input that stays open while it is to run."""

    def __init__(self, command: list[str], log: Path, directory: Path, environment: dict[str, str]) -> None:
        """Starts command in directory, in a process group of its own."""
        self.log = log
        self.started_in = directory
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends it and everything below it at once, as a machine that goes down would."""
        for process_id in (*descendants(self.pid), self.pid):
            _signal(process_id, signal.SIGKILL)
        self._close()

    def stop(self) -> None:
        """Asks it to end as Ctrl-C does, and ends it if it does not."""
        if self.running:
            _signal(self.pid, signal.SIGINT)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()

    def last_words(self, lines: int = 15) -> str:
        """Returns the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


def _signal(process_id: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, number)


def cpu_seconds(roots: list[int]) -> float:
    """Returns the processor time so far of processes and everything below them that still runs."""
    ticks = 0
    for root in roots:
        for process_id in (root, *descendants(root)):
            try:
                fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
            except FileNotFoundError:
                continue
            # user and system time, its own and that of children that have ended
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
