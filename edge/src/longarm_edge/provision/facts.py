"""What there is on the far side, looked at in one round trip."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longarm_edge.provision.errors import FarCommandError, ProvisionError
from longarm_edge.provision.far import Far
from longarm_edge.provision.scripts import LOOK
from longarm_wire.settings import ConfigurationError


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, and the version of its driver."""

    name: str
    memory_mib: int
    driver: str

    @property
    def driver_major(self) -> int:
        """First number of the driver's version, 0 if it has none."""
        first = self.driver.partition(".")[0]
        return int(first) if first.isdigit() else 0


@dataclass(frozen=True)
class Python:
    """One Python interpreter.

    Attributes:
      path: How to call it.
      version: As (3, 12, 1).
      complete: Whether it can make virtual environments.
      torch: Version of the torch that it sees, empty if none.
    """

    path: str
    version: tuple[int, ...]
    complete: bool = True
    torch: str = ""

    @property
    def version_text(self) -> str:
        """Version as a person writes it."""
        return ".".join(map(str, self.version))


@dataclass(frozen=True)
class Running:
    """What the supervisor says of itself and its service; see longarm_service/supervisor.py.

    Attributes:
      state: running, waiting, stopped or failed.
      supervisor_alive: Whether the supervisor is really there.
      service_alive: Whether the service's process is really there.
      service_pid: Its process id, 0 if there is none.
      restarts: How often it was started again.
      last_exit: How it ended the last time, in words.
      version: Its version.
      revision: What it was started with.
      port, metrics_port: Where it listens, 0 if it does not yet.
      readiness: What /readyz answers, in a word; empty if it does not answer.
    """

    state: str = ""
    supervisor_alive: bool = False
    service_alive: bool = False
    service_pid: int = 0
    restarts: int = 0
    last_exit: str = ""
    version: str = ""
    revision: str = ""
    port: int = 0
    metrics_port: int = 0
    readiness: str = ""

    @property
    def alive(self) -> bool:
        """Whether anything of it runs."""
        return self.supervisor_alive or self.service_alive


@dataclass(frozen=True)
class Facts:
    """The far side.

    Attributes:
      directory: Absolute path of Longarm's directory, whether it is there or not.
      is_marked: Whether a Longarm made it, or began to.
      is_ours: Whether it was made whole.
      is_foreign: Whether it holds somebody else's files.
      writable: Whether it is, or can be made.
      free_bytes: Space in it.
      system, machine: As uname says.
      systemd: Which systemd can run a unit that outlives the login: user, system or no.
      gpus: As nvidia-smi lists them.
      gpu_trouble: What nvidia-smi says when it fails.
      pythons: Interpreters found, the preferred first.
      environment_works: Whether the virtual environment runs and has pip.
      base, packages: Stamps of the virtual environment: how it was made, which packages are in it whole.
      longarm: Stamp of our own packages: version and digest.
      policies: Uploaded policies that are whole.
      taken_ports: Ports that something listens on or is connected from.
      running: The service.
    """

    directory: str
    is_marked: bool = False
    is_ours: bool = False
    is_foreign: bool = False
    writable: bool = True
    free_bytes: int = 0
    system: str = "Linux"
    machine: str = "x86_64"
    systemd: str = "no"
    gpus: tuple[Gpu, ...] = ()
    gpu_trouble: str = ""
    pythons: tuple[Python, ...] = ()
    environment_works: bool = False
    base: str = ""
    packages: str = ""
    longarm: str = ""
    policies: frozenset[str] = frozenset()
    taken_ports: frozenset[int] = frozenset()
    running: Running = field(default_factory=Running)

    @property
    def version(self) -> str:
        """Version of the installed service, empty if none is installed whole."""
        return self.longarm.partition(" ")[0]


def look(far: Far, directory: str, python: str = "") -> Facts:
    """Returns what there is.

    Args:
      far: Where to look.
      directory: Longarm's directory, as the user wrote it.
      python: An interpreter to look at first.

    Raises:
      ConfigurationError: Whatever answers there is no shell.
      ProvisionError: The look failed.
    """
    try:
        lines = far.run(LOOK, {"directory": directory, "wanted_python": python})
    except FarCommandError as error:
        if not _is_shell(error.lines):
            raise ConfigurationError([_no_shell(error.lines or [str(error)])]) from error
        raise ProvisionError(f"Looking at the far machine failed there:\n{error}") from error
    if not _is_shell(lines):
        raise ConfigurationError([_no_shell(lines)])
    return parse(lines)


def _is_shell(lines: Sequence[str]) -> bool:
    """Returns whether the look script ran: its first words are there."""
    return any(line.startswith("directory=") for line in lines)


def _no_shell(lines: Sequence[str]) -> str:
    said = " / ".join(line.strip() for line in lines if line.strip())[:200]
    return (
        f"Expected a shell for commands on the far machine, found {f'«{said}»' if said else 'one that runs none'}. The "
        "account may be bound to another program (ForceCommand in sshd_config, command= in authorized_keys, or its "
        "login shell): log in with one that is not. Some providers offer a second, full SSH address beside a "
        "restricted one."
    )


def parse(lines: Iterable[str]) -> Facts:
    """Returns the facts that the look script's lines state; lines of another form are passed over."""
    single: dict[str, str] = {}
    several: dict[str, list[str]] = {"gpu": [], "python": [], "policy": [], "taken_port": []}
    for line in lines:
        key, sign, value = line.partition("=")
        if key in several:
            several[key].append(value)
        elif sign:
            single[key] = value
    return Facts(
        directory=single["directory"],
        is_marked=single.get("marked") == "yes",
        is_ours=single.get("content") == "ours",
        is_foreign=single.get("content") == "foreign",
        writable=single.get("writable") == "yes",
        free_bytes=1024 * _number(single.get("free_kib")),
        system=single.get("system", ""),
        machine=single.get("machine", ""),
        systemd=single.get("systemd", "no"),
        gpus=tuple(_gpu(text) for text in several["gpu"]),
        gpu_trouble=single.get("gpu_trouble", ""),
        pythons=_pythons(several["python"]),
        environment_works=single.get("environment") == "works",
        base=single.get("base", ""),
        packages=single.get("packages", ""),
        longarm=single.get("longarm", ""),
        policies=frozenset(several["policy"]),
        taken_ports=frozenset(int(port) for port in several["taken_port"]),
        running=_running(single),
    )


def _gpu(text: str) -> Gpu:
    name, memory, driver = [*text.rsplit(",", 2), "", ""][:3]
    return Gpu(name.strip(), _number(memory.strip().partition(" ")[0]), driver.strip())


def _pythons(texts: Iterable[str]) -> tuple[Python, ...]:
    found: dict[tuple[Any, ...], Python] = {}
    for text in texts:
        fields = json.loads(text)
        # One interpreter goes by several names; a virtual environment's is another one, with other packages
        identity = (fields["real"], fields["prefix"])
        python = Python(fields["path"], tuple(fields["version"]), fields["complete"], fields["torch"])
        found.setdefault(identity, python)
    return tuple(found.values())


def _running(single: Mapping[str, str]) -> Running:
    try:
        ports = json.loads(single.get("announce") or "{}")
    except ValueError:
        ports = {}
    return Running(
        state=single.get("run_state", ""),
        supervisor_alive=single.get("supervisor_alive") == "yes",
        service_alive=single.get("service_alive") == "yes",
        service_pid=_number(single.get("run_service")),
        restarts=_number(single.get("run_restarts")),
        last_exit=single.get("run_exit", ""),
        version=single.get("run_version", ""),
        revision=single.get("run_revision", ""),
        port=int(ports.get("port", 0)),
        metrics_port=int(ports.get("metrics_port", 0)),
        readiness=single.get("readiness", ""),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
