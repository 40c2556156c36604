"""Decides what to do about the far side: from what is there and what is wanted to a list of steps, as plain data."""

import re
from dataclasses import dataclass
from typing import Literal

from longarm_edge.provision.facts import Facts, Gpu, Python
from longarm_wire.settings import ConfigurationError

OLDEST_PYTHON = (3, 12)
GIB = 2**30
# Measured: LeRobot with torch for CUDA takes 5.3 GB, and as wheels on the way about half of that
NEEDED_FOR_PACKAGES = 9 * GIB
NEEDED_FOR_REUSE = 2 * GIB
NEEDED_TO_RUN = GIB // 2
# The least driver for each CUDA release, as NVIDIA's release notes say
DRIVERS = {12: 525, 13: 580}


@dataclass(frozen=True)
class Wanted:
    """What the far side should be like.

    Attributes:
      version: Longarm's.
      longarm: Digest of our packages.
      packages: Digest of what they require.
      python: Interpreter to use; empty: any that will do.
      reuse: Whether to use the interpreter's packages.
      cuda: Major release of CUDA that torch will be built for, 0 if unknown.
      device: To run policies on; empty: the GPU.
      manager: Who keeps the service running: auto, systemd or own.
      revision: Digest of everything that a running service must agree with.
      ports: For gRPC and for metrics, if they are free.
      policy: Name of the policy to send; empty: none.
      policy_bytes: Its size.
    """

    version: str
    longarm: str
    packages: str
    revision: str
    python: str = ""
    reuse: bool = False
    cuda: int = 0
    device: str = ""
    manager: Literal["auto", "systemd", "own"] = "auto"
    ports: tuple[int, int] = (8080, 9100)
    policy: str = ""
    policy_bytes: int = 0

    @property
    def base(self) -> str:
        """Stamp of the virtual environment that it needs. The interpreter counts only if it was asked for."""
        return f"python={self.python} reuse={'yes' if self.reuse else 'no'}"

    @property
    def longarm_stamp(self) -> str:
        """Stamp of our packages."""
        return f"{self.version} {self.longarm}"


@dataclass(frozen=True)
class MakeDirectory:
    """Makes Longarm's directory."""


@dataclass(frozen=True)
class SendPolicy:
    """Sends the policy, or the rest of it."""

    name: str


@dataclass(frozen=True)
class StopService:
    """Stops the service that runs, in good order."""


@dataclass(frozen=True)
class MakeEnvironment:
    """Makes a virtual environment, in place of what may be there."""

    python: str


@dataclass(frozen=True)
class InstallPackages:
    """Installs what Longarm requires."""


@dataclass(frozen=True)
class InstallLongarm:
    """Sends Longarm's own packages and installs them."""

    version: str


@dataclass(frozen=True)
class StartService:
    """Starts the service under a supervisor."""

    port: int
    metrics_port: int
    manager: Literal["user", "system", "own"]


@dataclass(frozen=True)
class AwaitReady:
    """Waits until the service is ready."""


Step = (
    MakeDirectory
    | SendPolicy
    | StopService
    | MakeEnvironment
    | InstallPackages
    | InstallLongarm
    | StartService
    | AwaitReady
)


def plan(facts: Facts, wanted: Wanted) -> list[Step]:
    """Returns the steps from facts to wanted, in order. Only AwaitReady if everything is there already.

    Raises:
      ConfigurationError: There is no way, with a line for each thing that is missing and what to do.
    """
    installing = _installing(facts, wanted)
    steps: list[Step] = []
    if not facts.is_ours:
        steps.append(MakeDirectory())
    sends_policy = bool(wanted.policy) and wanted.policy not in facts.policies
    if sends_policy:
        # The longest step that needs nothing of the others: what runs goes on meanwhile
        steps.append(SendPolicy(wanted.policy))
    running = facts.running
    attaches = not installing and running.supervisor_alive and running.revision == wanted.revision
    problems = _problems(facts, wanted, installing, sends_policy, attaches)
    if problems:
        raise ConfigurationError(problems)
    if not attaches:
        if running.alive:
            steps.append(StopService())
        steps += installing
        steps.append(StartService(*_free_ports(facts, wanted.ports), _manager(facts, wanted)))
    return [*steps, AwaitReady()]


def choose_python(facts: Facts, wanted: str = "") -> Python | None:
    """Returns the interpreter to use: the one asked for, else the first that is complete and new enough."""
    usable = [python for python in facts.pythons if python.version >= OLDEST_PYTHON and python.complete]
    if wanted:
        usable = [python for python in usable if f"/{python.path}".endswith(f"/{wanted}")]
    return usable[0] if usable else None


def _installing(facts: Facts, wanted: Wanted) -> list[Step]:
    steps: list[Step] = []
    # Without its stamp an installation broke off: what is there may look whole and not be it
    if not (facts.environment_works and facts.base == wanted.base and facts.packages):
        python = choose_python(facts, wanted.python)
        steps.append(MakeEnvironment(python.path if python else ""))
    if steps or facts.packages != wanted.packages:
        steps.append(InstallPackages())
    if steps or facts.longarm != wanted.longarm_stamp:
        steps.append(InstallLongarm(wanted.version))
    return steps


def _free_ports(facts: Facts, preferred: tuple[int, int]) -> tuple[int, int]:
    """Returns the ports that a service on its way out had, else the preferred, else the next that are free."""
    own = {facts.running.port, facts.running.metrics_port} if facts.running.alive else set()
    taken = facts.taken_ports - own
    ports: list[int] = []
    for wish in (facts.running.port or preferred[0], facts.running.metrics_port or preferred[1]):
        port = wish
        while port in taken or port in ports:
            port = port + 1 if port < 65535 else 1024
        ports.append(port)
    return ports[0], ports[1]


def _manager(facts: Facts, wanted: Wanted) -> Literal["user", "system", "own"]:
    if wanted.manager == "own" or facts.systemd not in ("user", "system"):
        return "own"
    return "user" if facts.systemd == "user" else "system"


def _problems(facts: Facts, wanted: Wanted, installing: list[Step], sends_policy: bool, attaches: bool) -> list[str]:
    """Returns what stands in the way, a line each."""
    if facts.system != "Linux":
        return [f"Expected Linux on the far machine, found {facts.system or 'an unknown system'}."]
    if facts.machine not in ("x86_64", "aarch64"):
        return [f"Expected an x86_64 or aarch64 processor, found {facts.machine}: there are no builds of torch for it."]
    if attaches and not sends_policy:
        return []
    problems = []
    if facts.is_foreign:
        problems.append(
            f"{facts.directory} exists and holds other files. Name a directory for Longarm alone: --far.directory=…"
        )
    if not facts.writable:
        problems.append(f"{facts.directory} cannot be written. Name another directory: --far.directory=…")
    if any(isinstance(step, InstallLongarm) for step in installing) and _numbers(facts.version) > _numbers(
        wanted.version
    ):
        problems.append(
            f"The far machine has Longarm {facts.version}, newer than this one ({wanted.version}). Upgrade "
            "longarm-edge here, or remove it there first: longarm-edge down"
        )
    if any(isinstance(step, MakeEnvironment) for step in installing) and choose_python(facts, wanted.python) is None:
        problems.append(_no_python(facts, wanted.python))
    problems += _disk_problems(facts, wanted, installing, sends_policy)
    problems += _gpu_problems(facts, wanted, installing)
    if wanted.manager == "systemd" and facts.systemd == "no":
        problems.append(
            "There is no systemd that could run the service after the login ends. Use --far.manager=own; or, as "
            "another user than root, first run there: loginctl enable-linger"
        )
    return problems


def _no_python(facts: Facts, wanted: str) -> str:
    if wanted:
        return f"--far.python={wanted} is no complete Python 3.12 or newer there (with venv and ensurepip)."
    found = ", ".join(
        f"{python.path} ({python.version_text}{'' if python.complete else ' without venv or ensurepip'})"
        for python in facts.pythons
    )
    return (
        f"Expected Python 3.12 or newer on the far machine, found {found or 'none'}. Install one there, for instance "
        "with `conda create -y -n longarm python=3.12`, `uv python install 3.12` or `apt install python3.12-venv`; or "
        "name one: --far.python=…"
    )


def _disk_problems(facts: Facts, wanted: Wanted, installing: list[Step], sends_policy: bool) -> list[str]:
    needed = NEEDED_TO_RUN
    if any(isinstance(step, MakeEnvironment) for step in installing):
        needed += NEEDED_FOR_REUSE if wanted.reuse else NEEDED_FOR_PACKAGES
    if sends_policy:
        needed += wanted.policy_bytes
    if facts.free_bytes >= needed:
        return []
    have = f"{facts.directory} has {facts.free_bytes / GIB:.1f} GiB left and {needed / GIB:.1f} GiB are needed"
    return [f"{have}. Make room, or name a directory on a bigger disk: --far.directory=…"]


def _gpu_problems(facts: Facts, wanted: Wanted, installing: list[Step]) -> list[str]:
    if wanted.device:
        return []  # somebody knows better
    if not facts.gpus:
        said = f" (nvidia-smi: {facts.gpu_trouble})" if facts.gpu_trouble else ""
        found = f"Expected a GPU on the far machine, found none{said}. Start the machine with a GPU"
        remedy = (
            "name what policies are to run on: --policy_device=cpu, or cuda for a GPU that nvidia-smi does not list"
        )
        return [f"{found}; or {remedy}."]
    gpu = facts.gpus[0]
    needed = DRIVERS.get(wanted.cuda, 0)
    if installing and not wanted.reuse and gpu.driver_major < needed:
        return [_old_driver(gpu, wanted.cuda, needed)]
    return []


def _old_driver(gpu: Gpu, cuda: int, needed: int) -> str:
    return (
        f"Expected an NVIDIA driver {needed} or newer, which torch for CUDA {cuda} needs, found {gpu.driver} "
        f"({gpu.name}). Take torch for an older CUDA from another index: --far.torch_index_url=…; or use the torch "
        "that the machine's image has: --far.reuse_packages=true; or choose an image with a newer driver."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
