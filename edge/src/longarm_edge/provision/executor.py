"""Carries out a plan's steps on the far side."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from longarm_edge.provision import scripts, upload
from longarm_edge.provision.errors import FarCommandError, PortTakenError, ProvisionError
from longarm_edge.provision.far import Far
from longarm_edge.provision.narrator import Narrator, Telling
from longarm_edge.provision.plan import (
    AwaitReady,
    InstallLongarm,
    InstallPackages,
    MakeDirectory,
    MakeEnvironment,
    SendPolicy,
    StartService,
    Step,
    StopService,
    Wanted,
)
from longarm_edge.provision.unit import UNIT_NAME, render
from longarm_edge.provision.upload import File
from longarm_edge.provision.wheels import Packages, Requirements
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError

# Gigabytes from a slow mirror
INSTALL_TIMEOUT = 7200.0
# The supervisor gives a service 30 s to end
STOP_TIMEOUT = 60.0
# How longarm-service begins what it says to a person
SERVICE_SAYS = "longarm-service: "
# The settings that it names when a port is taken, which are not those of whoever reads it here
ITS_PORTS = re.compile(r"\bLONGARM_SERVICE_(METRICS_)?PORT\b")
# As strerror says it: no bytes, no inodes, no quota
FULL_DISK = re.compile(r"No space left on device|[Qq]uota exceeded")


@dataclass(frozen=True)
class Cargo:
    """What the steps bring along.

    Attributes:
      packages: Our own.
      requirements: What they require.
      policy_files: The policy to send.
      policy: The policy as the service knows it, empty if none was asked for.
      torch_index_url: Where torch comes from, empty for where everything comes from.
      install_environment: For pip; may hold secrets.
      service_environment: For the service, what a running one must have as well.
      start_environment: For the service, what only matters when it starts.
      secrets: For the service, in memory only.
      ready_timeout: Seconds to wait for the service.
    """

    packages: Packages
    requirements: Requirements
    policy_files: tuple[File, ...]
    policy: str
    start_environment: Mapping[str, str]
    torch_index_url: str
    install_environment: Mapping[str, str]
    service_environment: Mapping[str, str]
    secrets: Mapping[str, str]
    ready_timeout: float


@dataclass(frozen=True)
class FarService:
    """A service that is ready.

    Attributes:
      port, metrics_port: Where it listens on the far loopback.
      policy: The policy as the service knows it, empty if none was asked for.
    """

    port: int
    metrics_port: int
    policy: str


@dataclass
class Executor:
    """Carries out steps in one directory of one far side."""

    far: Far
    directory: str
    wanted: Wanted
    cargo: Cargo
    narrator: Narrator

    def carry_out(self, steps: list[Step]) -> FarService:
        """Carries out all steps, the last of which is AwaitReady.

        Raises:
          ProvisionError: A step failed; the next plan goes on from there.
          ConfigurationError: The service can never start as configured.
        """
        *others, last = steps
        for step in others:
            with self.narrator.step(title(step)) as telling:
                try:
                    self._do(step, telling)
                except FarCommandError as error:
                    # Often not the last that is said
                    full = next((line.strip() for line in error.lines if FULL_DISK.search(line)), "")
                    said = f"{full}\n{upload.MAKE_ROOM}" if full else error
                    raise ProvisionError(f"{title(step)} failed on the far side:\n{said}") from error
        with self.narrator.step(title(last)) as telling:
            return self._await_ready(telling)

    def _do(self, step: Step, telling: Telling) -> None:
        match step:
            case MakeDirectory():
                self._run(scripts.MAKE_DIRECTORY)
            case SendPolicy(name):
                target = f"{self.directory}/policies/{name}"
                upload.send(self.far, self.cargo.policy_files, target, telling.progress)
            case StopService():
                self._run(scripts.STOP, timeout=STOP_TIMEOUT)
            case MakeEnvironment(python):
                reuse = "yes" if self.wanted.reuse else "no"
                self._run(
                    scripts.MAKE_ENVIRONMENT, telling, python=python, reuse=reuse, base=self.wanted.base, timeout=300
                )
            case InstallPackages():
                self._install_packages(telling)
            case InstallLongarm():
                self._send_wheels(self.cargo.packages, self._requirements()[0])
                self._run(scripts.INSTALL_LONGARM, telling, longarm=self.wanted.longarm_stamp, timeout=300)
            case StartService():
                self._start(step)
            case AwaitReady():
                raise AssertionError("comes last")

    def _install_packages(self, telling: Telling) -> None:
        requirements, torch = self._requirements()
        self._send_wheels(None, requirements)
        self._run(
            scripts.INSTALL_PACKAGES,
            telling,
            timeout=INSTALL_TIMEOUT,
            packages=self.wanted.packages,
            hashed="yes" if requirements.hashed else "no",
            torch=" ".join(torch),
            torch_index_url=self.cargo.torch_index_url,
        )

    def _requirements(self) -> tuple[Requirements, list[str]]:
        if self.cargo.torch_index_url:
            return self.cargo.requirements.without_torch()
        return self.cargo.requirements, []

    def _send_wheels(self, packages: Packages | None, requirements: Requirements) -> None:
        with tempfile.TemporaryDirectory() as folder:
            wheels = packages.build(Path(folder)) if packages is not None else []
            text = Path(folder, "requirements.txt")
            text.write_text(requirements.text, encoding="utf-8")
            files = [upload.read_file(path, path.name) for path in (*wheels, text)]
            upload.send(self.far, files, f"{self.directory}/wheels")

    def _start(self, step: StartService) -> None:
        environment = {
            **self.cargo.start_environment,
            **self.cargo.service_environment,
            "LONGARM_SERVICE_PORT": str(step.port),
            "LONGARM_SERVICE_METRICS_PORT": str(step.metrics_port),
        }
        config = json.dumps({"revision": self.wanted.revision, "environment": environment})
        variables = {"directory": self.directory, "config": config}
        # The supervisor inherits the secrets and hands them on; they are in no file
        if step.manager == "own":
            self.far.run(scripts.START_DETACHED, variables, environment=self.cargo.secrets)
            return
        unit = {
            "unit": render(self.directory, scope=step.manager, secret_names=self.cargo.secrets),
            "unit_name": UNIT_NAME,
            "scope": f"--{step.manager}",
            "secret_names": " ".join(self.cargo.secrets),
        }
        self.far.run(scripts.START_UNIT, {**variables, **unit}, environment=self.cargo.secrets)

    def _await_ready(self, telling: Telling) -> FarService:
        seconds = self.cargo.ready_timeout
        return await_ready(self.far, self.directory, seconds, telling, self.cargo.policy)

    def _run(self, script: str, telling: Telling | None = None, *, timeout: float = 120.0, **variables: str) -> None:
        self.far.run(
            script,
            {"directory": self.directory, **variables},
            environment=self.cargo.install_environment,
            on_line=telling.line if telling is not None else None,
            timeout=timeout,
        )


def await_ready(far: Far, directory: str, seconds: float, telling: Telling, policy: str = "") -> FarService:
    """Returns the service once it is ready.

    Raises:
      ConfigurationError: It can never start as configured.
      PortTakenError: Somebody else has one of its ports.
      ProvisionError: It crashes, or takes too long.
    """
    try:
        far.run(
            scripts.AWAIT_READY,
            {"directory": directory, "seconds": f"{seconds:g}"},
            on_line=telling.line,
            timeout=seconds + 60,
        )
    except FarCommandError as error:
        if error.code == exit_codes.CANNOT_START:
            said = [line.removeprefix(SERVICE_SAYS) for line in error.lines if line.startswith(SERVICE_SAYS)]
            reason = said[-1] if said else f"see longarm-edge logs. They end:\n{error}"
            if ITS_PORTS.search(reason):
                raise PortTakenError(
                    "The far service cannot have its port: another program took it since the look, or it is below 1024 "
                    "and for root alone. `longarm-edge up` finds free ones; --ssh.service_port=… and "
                    "--ssh.metrics_port=… name others."
                ) from error
            raise ConfigurationError([f"The far service can never start as configured: {reason}"]) from error
        raise ProvisionError(
            f"The far service does not get ready (see longarm-edge logs). Its log ends:\n{error}"
        ) from error
    ports = json.loads(far.run(scripts.READ_PORTS, {"directory": directory})[-1])
    return FarService(ports["port"], ports["metrics_port"], policy)


def title(step: Step) -> str:
    """Returns what a step does, in words for a person."""
    match step:
        case MakeDirectory():
            return "making Longarm's directory"
        case SendPolicy(name):
            return f"sending the policy {name}"
        case StopService():
            return "stopping the service that runs"
        case MakeEnvironment(python):
            return f"making a virtual environment with {python}"
        case InstallPackages():
            return "installing what Longarm needs (minutes)"
        case InstallLongarm(version):
            return f"installing Longarm {version}"
        case StartService(port=port, manager=manager):
            return f"starting the service on port {port}" + ("" if manager == "own" else " under systemd")
        case AwaitReady():
            return "waiting until the service is ready"
