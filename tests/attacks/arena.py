"""A service, a robot that streams beside whoever attacks it, and what the robot noticed."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from tests.attacks.target import PATIENCE_SECONDS, Target

# The robot's, like that of a fast policy
PERIOD_SECONDS = 0.05
# What an attack may do to the robot's worst answers: this much, beside what a machine with other work does to them
MOST_TIMES = 1.5
FLOOR_SECONDS = 0.15
# What a service may take more than for honest robots. A few frames of the largest kind, and what Python keeps
MOST_BYTES = 512 << 20
HONEST = "honest traffic"
QUIET_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """What came of some seconds.

    Attributes:
      name: What was done meanwhile.
      latencies: Seconds, of each answer to the robot, sorted.
      failures: What else it got.
      steps: How often something was done to the service.
      slowest: What took longest of that, in words.
      broken: What of it the service neither did nor refused.
      peak_bytes: Largest memory of the service until then.
      processor_seconds: What the service took of processors.
      complaints: What the service wrote into its log, which says faults of its own.
    """

    name: str
    latencies: list[float]
    failures: list[str]
    steps: int
    slowest: str
    broken: list[str]
    peak_bytes: int
    processor_seconds: float
    complaints: str

    def quantile(self, share: float) -> float:
        """Returns what so many of the answers took at most, in seconds."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    def problems(self, quiet: "Finding") -> list[str]:
        """Returns what is worse than it may be, compared with honest traffic."""
        allowed = MOST_TIMES * quiet.quantile(0.99) + FLOOR_SECONDS
        found = [f"the robot got: {failure}" for failure in self.failures[:3]]
        found += [f"not answered: {broken}" for broken in self.broken[:3]]
        if self.complaints:
            found.append(f"the service's log has:\n{self.complaints[-2000:]}")
        if self.quantile(0.99) > allowed:
            found.append(f"p99 {self.quantile(0.99) * 1e3:.0f} ms, expected at most {allowed * 1e3:.0f} ms")
        if self.peak_bytes - quiet.peak_bytes > MOST_BYTES:
            found.append(f"the service took {(self.peak_bytes - quiet.peak_bytes) >> 20} MB more")
        return found

    def __str__(self) -> str:
        answers = " ".join(f"{self.quantile(share) * 1e3:5.0f}" for share in (0.5, 0.95, 0.99))
        return (
            f"{self.name:28} {self.steps:6} steps, robot p50 p95 p99 {answers} ms, {len(self.failures)} failures, "
            f"service {self.processor_seconds:.1f} s, {self.peak_bytes >> 20} MB, slowest step: {self.slowest}"
        )


class Arena:
    """A real service in a process of its own. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        """Starts the service, which keeps its files in directory."""
        self._announced = directory / "ports.json"
        self._log = directory / "service.log"
        settings = {"port": "0", "metrics_port": "0", "announce": str(self._announced), "log_level": "error"}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "tests.attacks.serve", *flags]
        with self._log.open("wb") as log:
            self._service = subprocess.Popen(command, stdout=log, stderr=log)
        self._target: Target | None = None

    def during(self, family: str, seconds: float) -> Finding:
        """Returns what a robot notices while a family of attacks goes on for at least so long, all of it once."""
        assert self._target is not None
        command = [sys.executable, "-m", "tests.attacks", "--attack", family]
        ports = [str(self._target.port), str(self._target.metrics_port)]
        logged, spent = self._log.stat().st_size, self._processor_seconds()
        with subprocess.Popen(
            [*command, *ports, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as attacker:
            assert attacker.stdin is not None
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == "ready\n", f"{family} does not begin"
            with Robot(self._target) as robot:
                attacker.stdin.close()
                told = json.loads(attacker.stdout.read())
        return Finding(
            name=family,
            latencies=sorted(robot.latencies),
            failures=robot.failures,
            peak_bytes=self._peak_bytes(),
            processor_seconds=self._processor_seconds() - spent,
            complaints=self._complaints(logged),
            **told,
        )

    def judged(self, family: str, seconds: float, attempts: int) -> tuple[Finding, list[str]]:
        """Returns what a family of attacks did, and what of it was worse than honest traffic.

        On a machine with other work now and then everything is slow: what an attack does, it does at every attempt.
        """
        for _ in range(attempts):
            finding = self.during(family, seconds)
            if not (problems := finding.problems(self.quiet)):
                break
            # The machine may have other work by now
            self.quiet = self.during(HONEST, seconds)
        return finding, problems

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 60
        while not self._announced.exists():
            assert self._service.poll() is None, "the service ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ports = json.loads(self._announced.read_text())
        self._target = Target(ports["port"], ports["metrics_port"])
        self.quiet = self.during(HONEST, QUIET_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._target is not None:
            self._target.channel.close()
        self._service.terminate()
        try:
            self._service.wait(30)
        except subprocess.TimeoutExpired:
            self._service.kill()
            self._service.wait()

    def _complaints(self, begin: int) -> str:
        """Returns the errors that were logged from there on. Image libraries write of what they refuse, too."""
        with self._log.open("rb") as log:
            log.seek(begin)
            text = log.read().decode(errors="replace")
        return text if " ERROR " in text or "Traceback" in text else ""

    def _processor_seconds(self) -> float:
        fields = Path(f"/proc/{self._service.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _peak_bytes(self) -> int:
        status = Path(f"/proc/{self._service.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


@dataclass
class Robot:
    """Streams on a thread as long as the context lasts."""

    target: Target
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._session = self.target.session()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._stream, name="robot")
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()
        self.target.close(self._session)

    def _stream(self) -> None:
        request = self.target.observation(self._session)
        while not self._done.wait(PERIOD_SECONDS):
            begun = time.perf_counter()
            try:
                self.target.stub.PredictChunk(request, timeout=PATIENCE_SECONDS)
            except grpc.RpcError as error:
                self.failures.append(str(error))
            self.latencies.append(time.perf_counter() - begun)
