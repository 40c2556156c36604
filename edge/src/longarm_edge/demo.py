"""The demo: a policy service as a child process, a simulated arm, twenty seconds, and a verdict."""

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from longarm_edge.lerobot_robot import make_robot
from longarm_edge.metrics import Observation, Tick
from longarm_edge.report import Summary
from longarm_edge.robot import Robot, RobotReading
from longarm_edge.run import RunResult
from longarm_edge.settings import EdgeSettings
from longarm_edge.told_run import run_to_exit_code
from longarm_edge.tunnel.local_sshd import LocalSshd, NoSshdError
from longarm_edge.tunnel.settings import SshSettings
from longarm_wire import exit_codes, images
from longarm_wire.settings import ConfigurationError, environment_for_others

logger = logging.getLogger(__name__)

SECONDS = 20.0
OUTPUT = Path("out/demo")
# A machine that stalls for longer than a period costs a tick; more than this share of them is no hiccup
SKIPPED_SHARE = 0.01
# Loading torch and a policy on a slow laptop
START_TIMEOUT = 180.0


def demo(settings: EdgeSettings, robot_flags: list[str], console: Console, *, through_ssh: bool = False) -> int:
    """Runs the demo and returns its exit code: 0 only if the run was healthy.

    Settings apply as in `run`; what is not set is chosen for the demo: the simulated arm, a policy made on the spot, a
    service of its own, SECONDS of duration. With through_ssh, the service is reached through a private sshd and the
    tunnel, as a rented machine would be.
    """
    output = OUTPUT
    try:
        output.mkdir(parents=True, exist_ok=True)
        checkpoint = _checkpoint(output, console)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigurationError([f"The demo keeps its files in {output.resolve()}: {error}"]) from error
    robot_settings = {"type": "longarm_sim", "id": "demo", **settings.robot}
    robot = _Remembering(make_robot(robot_settings, robot_flags, settings.fps))
    with _service(output, checkpoint) as (port, metrics_port), ExitStack() as stack:
        own = {
            "server_address": f"127.0.0.1:{port}",
            "ssh": stack.enter_context(_private_ssh(output, port, metrics_port)) if through_ssh else settings.ssh,
            "pretrained_name_or_path": str(checkpoint.resolve()),
            "duration": settings.duration or SECONDS,
            "plot": settings.plot or output / "run.png",
            "metrics_port": settings.metrics_port if "metrics_port" in settings.model_fields_set else 0,
        }
        result = run_to_exit_code(settings.model_copy(update=own), robot, console)
    if robot.last_reading is not None:
        _save_cameras(robot.last_reading, output / "cameras.png")
        console.print(f"cameras: {output / 'cameras.png'}", highlight=False, markup=False)
    problems = verdict(result)
    for problem in problems:
        console.print(Text.assemble(("not healthy:", "red"), f" {problem}"), soft_wrap=True)
    if not problems:
        console.print("[green]healthy[/green]: chunks arrived in time, nothing was rejected", highlight=False)
    return result.exit_code or (exit_codes.FAILED if problems else exit_codes.DONE)


def verdict(result: RunResult) -> list[str]:
    """Returns what was wrong with a run, in words; nothing for a healthy one."""
    summary: Summary = result.summary
    problems = []
    if result.exit_code != exit_codes.DONE:
        problems.append(result.reason)
    if summary.observations[Observation.ANSWERED] < 2:
        problems.append(f"only {summary.observations[Observation.ANSWERED]} chunks arrived")
    if summary.idle_after_first_second:
        problems.append(f"{summary.idle_after_first_second} idle ticks after the first second")
    if summary.ticks[Tick.SKIPPED] > SKIPPED_SHARE * sum(summary.ticks.values()):
        problems.append(f"{summary.ticks[Tick.SKIPPED]} ticks were skipped: this machine is too busy")
    problems += [
        f"{summary.observations[outcome]} observations {outcome.value}"
        for outcome in (Observation.REJECTED, Observation.FAILED, Observation.LOST, Observation.UNREADABLE)
        if summary.observations[outcome]
    ]
    return problems


def _checkpoint(output: Path, console: Console) -> Path:
    """Returns the demo's policy, made if it is not there yet; one that was interrupted is not there."""
    checkpoint, unfinished = output / "checkpoint", output / "checkpoint.unfinished"
    if not checkpoint.is_dir():
        console.print("making a small ACT policy with random weights", highlight=False)
        command = [_command("longarm-sim-checkpoint"), str(unfinished)]
        subprocess.run(command, env=environment_for_others(), check=True)  # noqa: S603
        unfinished.rename(checkpoint)
    return checkpoint


class _Remembering:
    """A robot that keeps its last reading, for a picture of what the cameras saw."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self.spec = robot.spec
        self.torque_at_disconnect = robot.torque_at_disconnect
        self.last_reading: RobotReading | None = None

    def connect(self) -> None:
        self._robot.connect()

    def configure(self) -> None:
        self._robot.configure()

    def observe(self, next_step: Callable[[], int] = lambda: 0) -> RobotReading:
        self.last_reading = self._robot.observe(next_step)
        return self.last_reading

    def read_state(self) -> np.ndarray:
        return self._robot.read_state()

    def send(self, command: np.ndarray, sent: Callable[[], None] = lambda: None) -> None:
        self._robot.send(command, sent)

    def take_over(self, seconds: float) -> bool:
        return self._robot.take_over(seconds)

    def disconnect(self, *, torque: bool | None) -> None:
        self._robot.disconnect(torque=torque)


@contextmanager
def _private_ssh(output: Path, port: int, metrics_port: int) -> Iterator[SshSettings]:
    """Runs an sshd of the demo's own and yields the settings of a tunnel through it."""
    try:
        sshd = LocalSshd((output / "sshd").resolve())
    except NoSshdError as error:
        raise ConfigurationError([str(error)]) from error
    with sshd:
        yield sshd.settings(service_port=port, metrics_port=metrics_port)


@contextmanager
def _service(output: Path, checkpoint: Path) -> Iterator[tuple[int, int]]:
    """Runs a policy service with checkpoint loaded and yields its port and that of its metrics."""
    announce, log = output / "service.json", output / "service.log"
    announce.unlink(missing_ok=True)
    # One thread of arithmetic leaves a core to the control loop on a laptop with two
    environment = environment_for_others() | {
        "LONGARM_SERVICE_PORT": "0",
        "LONGARM_SERVICE_METRICS_PORT": "0",
        "LONGARM_SERVICE_ANNOUNCE": str(announce),
        "LONGARM_SERVICE_PRELOAD": json.dumps([str(checkpoint.resolve())]),
        "LONGARM_SERVICE_TORCH_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as sink:
        service = subprocess.Popen(  # noqa: S603
            [_command("longarm-service"), "run"],
            env=environment,
            stdout=sink,
            stderr=sink,
            start_new_session=True,  # Ctrl-C is for the robot; the service ends after it
        )
        try:
            yield _ports(service, announce, log)
        finally:
            service.terminate()
            try:
                service.wait(10)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()


def _ports(service: "subprocess.Popen[bytes]", announce: Path, log: Path) -> tuple[int, int]:
    deadline = time.monotonic() + START_TIMEOUT
    while not announce.is_file():
        if service.poll() is not None or time.monotonic() > deadline:
            raise ConfigurationError([f"The demo's policy service did not start. The end of {log}:", *_tail(log)])
        time.sleep(0.1)
    ports = json.loads(announce.read_text())
    return ports["port"], ports["metrics_port"]


def _tail(log: Path) -> list[str]:
    return log.read_text().splitlines()[-8:]


def _command(name: str) -> str:
    """Returns the path of a command installed beside this one."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise ConfigurationError(
            [f"The demo needs the command {name}: install longarm-service and the simulated robot."]
        )
    return found


def _save_cameras(reading: RobotReading, path: Path) -> None:
    path.write_bytes(images.encode(np.hstack(list(reading.images.values())), images.Codec.PNG))
