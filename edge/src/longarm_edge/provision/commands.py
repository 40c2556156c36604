"""The commands that act on the far side: up, status, logs, stop, restart, down."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from rich.console import Console

from longarm_edge import __version__
from longarm_edge.provision import scripts
from longarm_edge.provision.aside import Aside, run_aside
from longarm_edge.provision.connection import connected
from longarm_edge.provision.errors import ConnectionLostError, PortTakenError, ProvisionError
from longarm_edge.provision.executor import STOP_TIMEOUT, Cargo, Executor, FarService, await_ready
from longarm_edge.provision.facts import Facts, look
from longarm_edge.provision.far import Far, SshFar
from longarm_edge.provision.narrator import Narrator
from longarm_edge.provision.plan import MakeEnvironment, Step, Wanted, choose_python, plan
from longarm_edge.provision.settings import FarSettings
from longarm_edge.provision.unit import UNIT_NAME
from longarm_edge.provision.upload import read_policy
from longarm_edge.provision.wheels import find_packages
from longarm_edge.tunnel.settings import SshSettings
from longarm_edge.tunnel.tunnel import Ask
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)

# Each goes on where the last one stopped
CONNECT_ATTEMPTS = 4
RECONNECT_SECONDS = 2.0
REMOVE_TIMEOUT = 300.0
# A connection that stays as long as somebody looks
FOLLOW_SECONDS = 7 * 24 * 3600.0


def up(
    ssh: SshSettings,
    far: FarSettings,
    console: Console,
    *,
    policy: str = "",
    device: str = "",
    dtype: str = "",
    ask: Ask | None = None,
) -> FarService:
    """Returns the far service once it is ready, after installing and starting whatever of it is missing.

    Args:
      ssh: How to reach the far side. Its service_port and metrics_port are used there if they are free.
      far: What the far side should be like.
      console: Where a person looks.
      policy: Policy to load at start, as the far side knows it; far.policy wins over it.
      device, dtype: As in the service's settings; empty: the GPU, as saved.
      ask: Asks a person about an unknown host key; None where nobody is there.

    Raises:
      ConfigurationError: It can never work as things are: exit code 3.
      ProvisionError: A step failed; calling it again goes on from there: exit code 1.
    """
    narrator = Narrator(console)

    def attempt(order: _Order, aside: Aside) -> FarService:
        with ExitStack() as stack:
            there = stack.enter_context(_far(ssh, far, ask, aside))
            with narrator.step(f"looking at {ssh.host}"):
                facts = look(there, far.directory, far.python)
            wanted, cargo = order.for_facts(facts)
            steps = plan(facts, wanted)
            if len(steps) > 1:
                # Something is to be changed: what counts is how things are once nobody else changes them
                stack.enter_context(there.hold(facts.directory, logger.warning))
                facts = look(there, far.directory, far.python)
                steps = plan(facts, wanted)
            _hint(steps, facts, wanted, console)
            return Executor(there, facts.directory, wanted, cargo, narrator).carry_out(steps)

    def attempts(aside: Aside) -> FarService:
        order = _Order(ssh, far, policy, device, dtype)
        for _ in range(1, CONNECT_ATTEMPTS):
            try:
                return attempt(order, aside)
            except (ConnectionLostError, PortTakenError) as error:
                if not aside.interrupted.is_set():
                    logger.warning("%s Trying again.", error)
                if aside.interrupted.wait(RECONNECT_SECONDS):
                    raise
        return attempt(order, aside)

    return _aside(console, attempts)


def manage(
    command: str,
    ssh: SshSettings,
    far: FarSettings,
    console: Console,
    *,
    follow: bool = False,
    line_count: int = 200,
    ask: Ask | None = None,
) -> int:
    """Runs status, logs, stop, restart or down, and returns an exit code.

    Args:
      command: Its name.
      ssh, far, console, ask: As for up.
      follow: Whether logs goes on with what is added.
      line_count: How many lines logs begins with.

    Raises:
      ConfigurationError: It can never work as configured.
      ProvisionError: It did not work.
    """

    def act(aside: Aside) -> int:
        with _far(ssh, far, ask, aside) as there:
            facts = look(there, far.directory, far.python)
            match command:
                case "status":
                    return _status(ssh.host, facts, console)
                case "logs":
                    return _logs(there, facts, follow, line_count)
                case "stop":
                    return _stop(there, facts, console)
                case "restart":
                    return _restart(there, facts, far, console)
                case "down":
                    return _down(there, facts, console)
        raise ValueError(f"There is no command {command!r}")

    return _aside(console, act)


class _Order:
    """What the settings ask for, read once; complete as soon as the far side is known."""

    def __init__(self, ssh: SshSettings, far: FarSettings, policy: str, device: str, dtype: str) -> None:
        self._ssh = ssh
        self._far = far
        self._policy = policy
        self._device = device
        self._dtype = dtype
        self._packages = find_packages(far.wheels)
        self._requirements = self._packages.requirements(locked=not far.reuse_packages)
        self._policy_name, self._policy_files = read_policy(far.policy) if far.policy is not None else ("", [])

    def for_facts(self, facts: Facts) -> tuple[Wanted, Cargo]:
        far = self._far
        service_environment = {
            **_places(facts.directory),
            **({"HF_ENDPOINT": far.hf_endpoint} if far.hf_endpoint else {}),
            "LONGARM_SERVICE_HOST": "127.0.0.1",
            "LONGARM_SERVICE_METRICS_HOST": "127.0.0.1",
            **far.environment,
        }
        secrets = {name: secret.get_secret_value() for name, secret in far.secrets.items()}
        indexes = {"PIP_INDEX_URL": far.pip_index_url, "PIP_EXTRA_INDEX_URL": far.pip_extra_index_url}
        wanted = Wanted(
            version=__version__,
            longarm=self._packages.digest,
            packages=_digest(self._requirements.digest, far.torch_index_url),
            python=far.python,
            reuse=far.reuse_packages,
            cuda=0 if far.torch_index_url else self._requirements.cuda,
            device=self._device,
            manager=far.manager,
            ports=self._ssh.forwards,
            policy=self._policy_name,
            policy_bytes=sum(file.size for file in self._policy_files),
            # Neither ports, which may have to change, nor the policy: a robot may ask for another one at any time
            revision=_digest(
                self._packages.digest, self._requirements.digest, far.python, service_environment, sorted(secrets)
            ),
        )
        policy = f"{facts.directory}/policies/{self._policy_name}" if self._policy_name else self._policy
        cargo = Cargo(
            packages=self._packages,
            requirements=self._requirements,
            policy_files=tuple(self._policy_files),
            start_environment={
                # By name, so that a service that cannot use the GPU says so and does not creep along without it
                "LONGARM_SERVICE_POLICY_DEVICE": self._device or "cuda",
                "LONGARM_SERVICE_DTYPE": self._dtype,
                "LONGARM_SERVICE_PRELOAD": json.dumps([policy] if policy else []),
            },
            policy=policy,
            torch_index_url=far.torch_index_url,
            install_environment={
                **_places(facts.directory),
                "TMPDIR": f"{facts.directory}/cache",  # where there is no other yet
                **{name: url for name, url in indexes.items() if url},
                **far.environment,
                **secrets,
            },
            service_environment=service_environment,
            secrets=secrets,
            ready_timeout=far.ready_timeout,
        )
        return wanted, cargo


def _hint(steps: list[Step], facts: Facts, wanted: Wanted, console: Console) -> None:
    """Tells whoever is about to fetch gigabytes that they may be there already."""
    python = choose_python(facts, wanted.python)
    if python is not None and python.torch and not wanted.reuse and any(isinstance(s, MakeEnvironment) for s in steps):
        console.print(
            f"{python.path} has torch {python.torch}: --far.reuse_packages=true uses it and spares the download",
            highlight=False,
            markup=False,
        )


def _places(directory: str) -> dict[str, str]:
    """Returns variables that keep what libraries leave behind in Longarm's directory, to be removed with it."""
    cache = f"{directory}/cache"
    names = {
        "TMPDIR": "/temporary",
        "XDG_CACHE_HOME": "",
        "XDG_CONFIG_HOME": "/config",
        "PIP_CACHE_DIR": "/pip",
        "HF_HOME": "/huggingface",
        "TORCH_HOME": "/torch",
        "TORCHINDUCTOR_CACHE_DIR": "/inductor",
        "TRITON_CACHE_DIR": "/triton",
        "CUDA_CACHE_PATH": "/cuda",
        "MPLCONFIGDIR": "/matplotlib",
    }
    return {name: cache + place for name, place in names.items()}


def _status(host: str, facts: Facts, console: Console) -> int:
    running = facts.running
    gpus = ", ".join(f"{gpu.name} {gpu.memory_mib / 1024:.0f} GiB, driver {gpu.driver}" for gpu in facts.gpus)
    rows = {
        "machine": f"{host}: {gpus or 'no GPU'}, {facts.free_bytes / 2**30:.0f} GiB free in {facts.directory}",
        "installed": f"Longarm {facts.version}" if facts.version else "not installed, or not whole",
        "service": _service_words(facts),
        "policies": ", ".join(sorted(facts.policies)) or "none uploaded",
    }
    if running.alive and running.port:
        rows["ports"] = f"{running.port}, metrics {running.metrics_port}, on its loopback"
    for name, text in rows.items():
        console.print(f"{name:<10} {text}", highlight=False, markup=False, soft_wrap=True)
    return exit_codes.DONE if running.alive and running.readiness == "ready" else exit_codes.FAILED


def _service_words(facts: Facts) -> str:
    running = facts.running
    if not running.alive:
        return "failed: it can never start as configured (see logs)" if running.state == "failed" else "not running"
    restarts = f", restarts: {running.restarts}, last end: {running.last_exit}" if running.restarts else ""
    if not running.service_alive:
        return f"crashed, about to be started again{restarts}"
    return f"{running.readiness or 'starting'}, Longarm {running.version}, process {running.service_pid}{restarts}"


def _logs(there: Far, facts: Facts, follow: bool, line_count: int) -> int:
    variables = {"directory": facts.directory, "count": str(line_count), "follow": "yes" if follow else "no"}
    try:
        # To standard output, for pipes
        there.run(scripts.LOGS, variables, on_line=partial(print, flush=True), timeout=FOLLOW_SECONDS)
    except BrokenPipeError:
        # `logs | head` has seen enough. Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_codes.DONE


def _stop(there: Far, facts: Facts, console: Console) -> int:
    if not facts.running.alive:
        console.print("the service does not run", highlight=False)
        return exit_codes.DONE
    with Narrator(console).step("stopping the service"):
        there.run(scripts.STOP, {"directory": facts.directory}, timeout=STOP_TIMEOUT)
    return exit_codes.DONE


def _restart(there: Far, facts: Facts, far: FarSettings, console: Console) -> int:
    if not facts.running.supervisor_alive:
        raise ProvisionError("The service does not run. Start it with longarm-edge up.")
    narrator = Narrator(console)
    with narrator.step("restarting the service"):
        there.run(scripts.RESTART, {"directory": facts.directory}, timeout=STOP_TIMEOUT)
    with narrator.step("waiting until the service is ready") as telling:
        await_ready(there, facts.directory, far.ready_timeout, telling)
    return exit_codes.DONE


def _down(there: Far, facts: Facts, console: Console) -> int:
    if facts.is_foreign:
        raise ConfigurationError([f"{facts.directory} is not Longarm's: nothing was removed."])
    if not facts.is_marked:
        console.print(
            f"there is nothing of Longarm in {facts.directory}", highlight=False, markup=False, soft_wrap=True
        )
        return exit_codes.DONE
    with there.hold(facts.directory, logger.warning):
        _stop(there, look(there, facts.directory), console)
        with Narrator(console).step(f"removing {facts.directory}"):
            variables = {"directory": facts.directory, "unit_name": UNIT_NAME}
            said = there.run(scripts.REMOVE, variables, timeout=REMOVE_TIMEOUT)
    for reason in [line.removeprefix("stays=") for line in said if line.startswith("stays=")]:
        logger.warning("Everything in %s is removed, the directory itself stays (%s)", facts.directory, reason)
    return exit_codes.DONE


def _aside[T](console: Console, work: Callable[[Aside], T]) -> T:
    try:
        return run_aside(work)
    except KeyboardInterrupt:
        # Work that is left behind draws its progress no further
        console.show_cursor()
        raise


@contextmanager
def _far(ssh: SshSettings, far: FarSettings, ask: Ask | None, aside: Aside) -> Iterator[Far]:
    if not ssh.host:
        example = "root@gpu.example.com -p 2222"
        raise ConfigurationError(
            [f"No far machine is named. Pass it as to ssh ({example}), or set LONGARM_EDGE_SSH__HOST."]
        )
    with connected(ssh, aside.in_front(ask) if ask is not None else None, aside) as transport:
        secrets = tuple(text for secret in far.secrets.values() if (text := secret.get_secret_value()))
        yield SshFar(transport, secrets)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
